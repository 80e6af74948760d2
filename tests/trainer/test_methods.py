"""Loading a model: every weight comes from the snapshot, whatever the architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_trainer.methods import load_model
from finetune_trainer.stage import UserError
from safetensors.numpy import load_file, save_file
from transformers import BloomConfig, BloomForCausalLM

from tests.trainer.tiny import tiny_model


def test_a_snapshot_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError) as caught:
        load_model(folder, torch.float32)
    failure = caught.value.failure
    assert failure.reason == "ModelIncomplete"
    assert "model.layers.1.mlp.up_proj.weight" in failure.message
    assert failure.remedy


def test_a_model_without_fused_attention_is_loaded_with_its_own(tmp_path: Path) -> None:
    config = BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2)
    BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")
    assert load_model(tmp_path / "bloom", torch.float32).config._attn_implementation == "eager"
