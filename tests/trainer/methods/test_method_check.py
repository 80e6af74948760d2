"""The method is tried in prepare: what does not fit the model is refused before training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetune_api.finetunejob import Method
from finetune_trainer.methods.method_check import check_method
from finetune_trainer.methods.weight_check import build_empty_model
from finetune_trainer.runtime.errors import UserError

from tests.trainer import families
from tests.trainer.architectures import write_model
from tests.trainer.image_models import gemma3
from tests.trainer.prepare_world import World
from tests.trainer.tiny import tiny_model

METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {"type": "LoRA"},
    "QLoRA": {"type": "QLoRA"},
    "DoRA": {"type": "DoRA"},
    "AdaLoRA": {"type": "AdaLoRA"},
    "IA3": {"type": "IA3"},
    "Prefix": {"type": "Prefix", "prefix": {"projection": True}},
    "Full": {"type": "Full"},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [tiny_model, families.tiny_gpt2, gemma3])
def test_usual_methods_fit(tmp_path: Path, make: Callable[[Path], Path], method: str) -> None:
    model = build_empty_model(make(tmp_path / "model"), "model")
    check_method(model, Method.model_validate(METHODS[method]), "model")


@pytest.mark.parametrize("kind", ["llama4_text", "gpt_oss", "qwen3_moe", "gemma4_text"])
def test_all_linear_layers_of_other_architectures_fit(tmp_path: Path, kind: str) -> None:
    model = build_empty_model(write_model(tmp_path, kind), "model")
    check_method(model, Method(type="LoRA"), "model")
    adapted = [name for name, _ in model.named_modules() if name.endswith("q_proj.lora_A")]
    assert adapted


def test_experts_fit(tmp_path: Path) -> None:
    model = build_empty_model(families.tiny_mixtral(tmp_path / "model"), "model")
    method = Method.model_validate(
        {"type": "LoRA", "lora": {"dropout": 0}, "moe": {"experts": True}}
    )
    check_method(model, method, "model")


def test_layers_that_peft_cannot_adapt_are_refused(tmp_path: Path) -> None:
    model = build_empty_model(write_model(tmp_path, "afmoe"), "model")
    with pytest.raises(UserError) as caught:
        check_method(model, Method(type="LoRA"), "model")
    failure = caught.value.failure
    assert failure.reason == "UnsupportedModel"
    assert "gate_proj" in failure.message
    assert "targetModules" in failure.remedy


def test_prepare_refuses_layers_that_the_model_does_not_have(world: World) -> None:
    failure = world.fails(method={"type": "LoRA", "lora": {"targetModules": ["nowhere"]}})
    assert failure.reason == "UnknownTargetModule"
    assert "nowhere" in failure.message
