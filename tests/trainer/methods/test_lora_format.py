"""LoRA keeps fp32 weights and computes in the dtype of the activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from finetune_api.finetunejob import LoRA, Method
from finetune_trainer.methods.adapters import add_adapters
from torch import nn
from transformers import AutoModelForCausalLM

from tests.trainer.tiny import VOCABULARY, tiny_model


def adapted(folder: Path, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model(folder), dtype=dtype)
    method = Method(type="LoRA", lora=LoRA(rank=4, dropout=0.0))
    with_adapters = add_adapters(model, method, total_steps=1)
    for name, weight in with_adapters.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.02)
    return with_adapters


def gradients(model: Any) -> dict[str, torch.Tensor]:
    ids = torch.arange(24).view(2, 12) % VOCABULARY
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_no_activation_is_cast_to_fp32_for_an_adapter(tmp_path: Path) -> None:
    model = adapted(tmp_path / "tiny", torch.bfloat16)
    seen: set[torch.dtype] = set()
    layers = [each for name, each in model.named_modules() if name.endswith("_A.default")]
    for each in layers:
        each.register_forward_hook(lambda _, inputs, out: seen.update([inputs[0].dtype, out.dtype]))
    found = gradients(model)
    assert layers
    assert seen == {torch.bfloat16}
    assert {grad.dtype for grad in found.values()} == {torch.float32}


def test_rounded_adapters_get_nearly_the_gradients_of_fp32_ones(tmp_path: Path) -> None:
    rounded = gradients(adapted(tmp_path / "a", torch.bfloat16))
    exact = gradients(adapted(tmp_path / "b", torch.float32))
    assert exact
    for name, grad in exact.items():
        similarity = nn.functional.cosine_similarity(grad.flatten(), rounded[name].flatten(), dim=0)
        assert similarity > 0.99, name


def test_a_run_in_fp32_is_not_rounded(tmp_path: Path) -> None:
    model = adapted(tmp_path / "tiny", torch.float32)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    inputs = torch.randn(3, layer.in_features)
    expected = layer.base_layer(inputs) + layer.scaling["default"] * (
        inputs @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
    )
    assert torch.allclose(layer(inputs), expected, atol=1e-6)
