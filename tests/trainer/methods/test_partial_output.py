"""Method Full on models with tensors that are not trained."""

from __future__ import annotations

from pathlib import Path

import torch
from finetune_trainer.methods import load_base_model
from finetune_trainer.methods.partial_output import has_untrained_tensors
from safetensors.torch import load_file

from tests.trainer.families import tiny_deepseek
from tests.trainer.whole_job import single_rank, train_and_export


def test_the_bias_of_a_router_is_exported_unchanged(tmp_path: Path) -> None:
    model = tiny_deepseek(tmp_path / "models" / "tiny")
    with single_rank(tmp_path):
        artifact = train_and_export(tmp_path, model, method="Full")
    assert not (tmp_path / "job" / "output" / "config.json").exists()
    before, after = (load_file(folder / "model.safetensors") for folder in (model, artifact))
    assert before.keys() == after.keys()
    biases = [name for name in before if name.endswith("e_score_correction_bias")]
    assert biases
    for name in biases:
        assert torch.equal(before[name], after[name])
    assert not torch.equal(before["model.norm.weight"], after["model.norm.weight"])


def test_a_llama_has_no_untrained_tensors_until_a_weight_is_frozen(tiny_model_folder: Path) -> None:
    model = load_base_model(tiny_model_folder, torch.float32)
    assert not has_untrained_tensors(model)
    model.get_input_embeddings().weight.requires_grad_(False)
    assert has_untrained_tensors(model)
