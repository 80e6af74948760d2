"""The method is applied in prepare: what does not fit the model is refused before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetune_api.finetunejob import Method
from finetune_trainer.methods.method_check import check_method
from finetune_trainer.methods.weight_check import build_empty_model
from finetune_trainer.prepare import build_job_model
from finetune_trainer.runtime.errors import UserError

from hack.measure_packing import tiny_config
from tests.trainer.architectures import SPEC
from tests.trainer.image_models import gemma3
from tests.trainer.prepare_world import World

METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {"type": "LoRA"},
    "QLoRA": {"type": "QLoRA"},
    "DoRA": {"type": "DoRA"},
    "AdaLoRA": {"type": "AdaLoRA"},
    "IA3": {"type": "IA3"},
    "Prefix": {"type": "Prefix", "prefix": {"projection": True}},
    "Full": {"type": "Full"},
}


def build(folder: Path, kind: str) -> Any:
    """A model of this type, without memory for its weights."""
    tiny_config(kind, frozenset({"head_dim"})).save_pretrained(folder)
    return build_empty_model(folder, "model")


@pytest.fixture(scope="module")
def gemma3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gemma3(tmp_path_factory.mktemp("gemma3"))


@pytest.mark.parametrize("method", METHODS)
def test_usual_methods_fit(tmp_path: Path, gemma3_folder: Path, method: str) -> None:
    models = [build(tmp_path, "llama"), build(tmp_path, "gpt2")]
    for model in [*models, build_empty_model(gemma3_folder, "model")]:
        check_method(model, Method.model_validate(METHODS[method]), "model")


@pytest.mark.parametrize("kind", ["llama4_text", "gpt_oss", "qwen3_moe", "gemma4_text"])
def test_all_linear_layers_of_other_architectures_fit(tmp_path: Path, kind: str) -> None:
    model = build(tmp_path, kind)
    check_method(model, Method(type="LoRA"), "model")
    adapted = [name for name, _ in model.named_modules() if name.endswith("q_proj.lora_A")]
    assert adapted


def test_experts_fit(tmp_path: Path) -> None:
    method = Method.model_validate(
        {"type": "LoRA", "lora": {"dropout": 0}, "moe": {"experts": True}}
    )
    check_method(build(tmp_path, "mixtral"), method, "model")


def test_layers_that_peft_cannot_adapt_are_refused(tmp_path: Path) -> None:
    model = build(tmp_path, "afmoe")
    with pytest.raises(UserError) as caught:
        check_method(model, Method(type="LoRA"), "model")
    failure = caught.value.failure
    assert failure.reason == "UnsupportedModel"
    assert "gate_proj" in failure.message
    assert "targetModules" in failure.remedy


def test_a_reward_job_is_checked_with_its_sequence_classifier(tiny_model_folder: Path) -> None:
    spec = SPEC.model_copy(update={"objective": "Reward"})
    model, _ = build_job_model(spec, tiny_model_folder, "model")
    assert type(model).__name__ == "LlamaForSequenceClassification"


def test_prepare_refuses_layers_that_the_model_does_not_have(world: World) -> None:
    failure = world.fails(method={"type": "LoRA", "lora": {"targetModules": ["nowhere"]}})
    assert failure.reason == "UnknownTargetModule"
    assert "nowhere" in failure.message
