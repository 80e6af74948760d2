"""Method Full on models that hold tensors which are not trained."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.trainer.families import tiny_deepseek
from tests.trainer.tiny import tiny_model
from tests.trainer.whole_job import single_rank, train_and_export


def test_the_bias_of_a_router_is_exported_as_it_was(tmp_path: Path) -> None:
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


def test_a_model_of_weights_alone_is_written_as_a_model(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "models" / "tiny")
    with single_rank(tmp_path):
        train_and_export(tmp_path, model, method="Full")
    assert (tmp_path / "job" / "output" / "config.json").is_file()
