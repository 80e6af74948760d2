"""The prepare stage of jobs that continue from a LoRA adapter."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.failure import Failure
from finetune_trainer.sources import Credentials
from finetune_trainer.sources.adapter_files import ADAPTER_WEIGHTS
from finetune_trainer.sources.model_files import ADAPTER_CONFIG
from safetensors.torch import load_file, save_file

from tests.trainer.adapters import change_config, write_adapter
from tests.trainer.families import tiny_mixtral
from tests.trainer.prepare_world import World, use_model
from tests.trainer.servers import Hub, Repository
from tests.trainer.tiny import CHATML_GENERATION, tiny_model

LORA: dict[str, Any] = {"rank": 4, "alpha": 16, "targetModules": ["q_proj", "v_proj"]}
METHOD: dict[str, Any] = {"type": "LoRA", "lora": LORA}
MODEL = {"adapter": {"uri": "pvc://adapters/first"}}


@pytest.fixture
def adapter(world: World, tiny_model_folder: Path) -> Path:
    return write_adapter(world.root / "pvc" / "adapters" / "first", tiny_model_folder, METHOD)


def continue_adapter(world: World, method: dict[str, Any] = METHOD, **model: Any) -> Any:
    result = world.prepare(method=method, model={**MODEL, **model})
    assert result.model is not None
    assert result.model.adapter is not None
    return result.model.adapter


def fails_again(world: World, method: dict[str, Any]) -> Failure:
    return world.fails_again(method=method, model=MODEL)


def fails(world: World, method: dict[str, Any] = METHOD, **model: Any) -> Failure:
    return world.fails(method=method, model={**MODEL, **model})


def test_the_adapter_is_kept_in_the_folder_of_the_job(world: World, adapter: Path) -> None:
    facts = continue_adapter(world)
    folder = world.root / "job" / "adapter" / facts.folder
    assert (folder / ADAPTER_WEIGHTS).read_bytes() == (adapter / ADAPTER_WEIGHTS).read_bytes()
    assert facts.revision.startswith("sha256:")
    # A second attempt needs only what the first one has downloaded.
    assert continue_adapter(world) == facts


def test_an_adapter_of_the_hub_has_its_own_credentials(
    world: World, hub: Hub, adapter: Path
) -> None:
    hub.repositories["acme/first"] = Repository(adapter)
    world.secrets["model.adapter"] = Credentials({"HF_ENDPOINT": hub.url})
    facts = continue_adapter(world, adapter={"uri": "hf://acme/first"})
    assert len(facts.revision) == 40


def test_an_adapter_is_unpacked_from_an_archive(world: World, adapter: Path) -> None:
    archive = world.root / "pvc" / "adapters" / "first.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(adapter, "checkpoint-3")
    facts = continue_adapter(world, adapter={"uri": "pvc://adapters/first.tar.gz"})
    assert (world.root / "job" / "adapter" / facts.folder / ADAPTER_CONFIG).is_file()


def test_an_archive_without_an_adapter_is_refused(world: World, adapter: Path) -> None:
    (adapter / ADAPTER_CONFIG).unlink()
    shutil.make_archive(str(adapter), "zip", adapter)
    failure = fails(world, adapter={"uri": "pvc://adapters/first.zip"})
    assert failure.reason == "AdapterIncomplete"
    assert f"{ADAPTER_CONFIG} is missing" in failure.message


@pytest.mark.parametrize(
    ("method", "saved"),
    [
        ({"type": "QLoRA", "lora": LORA}, METHOD),
        ({"type": "DoRA", "lora": LORA}, {"type": "DoRA", "lora": LORA}),
        (
            {"type": "LoRA", "lora": {**LORA, "modulesToSave": ["embed_tokens", "lm_head"]}},
            {"type": "LoRA", "lora": {**LORA, "modulesToSave": ["embed_tokens", "lm_head"]}},
        ),
        (
            {"type": "LoRA", "lora": {**LORA, "dropout": 0.3}},
            {"type": "LoRA", "lora": {**LORA, "dropout": 0}},
        ),
    ],
)
def test_methods_that_continue(
    world: World, tiny_model_folder: Path, method: dict[str, Any], saved: dict[str, Any]
) -> None:
    write_adapter(world.root / "pvc" / "adapters" / "first", tiny_model_folder, saved)
    continue_adapter(world, method)


@pytest.mark.parametrize(
    ("method", "named"),
    [
        ({"type": "LoRA"}, "rank 4 instead of 16, alpha 16 instead of 32"),
        ({"type": "LoRA", "lora": {**LORA, "alpha": 8}}, "alpha 16 instead of 8"),
        ({"type": "DoRA", "lora": LORA}, "type LoRA instead of DoRA"),
        ({"type": "LoRA", "lora": {**LORA, "rankStabilized": True}}, "rankStabilized False"),
        ({"type": "LoRA", "lora": {"rank": 4, "alpha": 16}}, "it has no base_model.model.model"),
        (
            {"type": "LoRA", "lora": {**LORA, "targetModules": ["q_proj"]}},
            "v_proj.lora_A.weight, base_model",
        ),
        (
            {"type": "LoRA", "lora": {**LORA, "modulesToSave": ["norm"]}},
            "it has no base_model.model.model.norm.weight",
        ),
    ],
)
def test_other_settings_are_refused_with_those_of_the_adapter(
    world: World, adapter: Path, method: dict[str, Any], named: str
) -> None:
    failure = fails(world, method)
    assert failure.reason == "AdapterUnsupported"
    assert named in failure.message
    assert failure.remedy is not None
    assert failure.remedy.startswith(
        "Set method to {type: LoRA, lora: {rank: 4, alpha: 16, targetModules: [q_proj, v_proj]}}."
        if method["type"] == "LoRA"
        else "Set method to {type: LoRA"
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"peft_type": "IA3"}, "its type is IA3"),
        ({"base_model_name_or_path": "acme/other"}, "names the base model acme/other"),
        ({"bias": "lora_only"}, "bias 'lora_only'"),
        ({"alpha_pattern": {"q_proj": 64}}, "alpha_pattern"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa"}, "its initialisation pissa"),
        ({"a_setting_of_tomorrow": {"on": True}}, "a_setting_of_tomorrow"),
    ],
)
def test_settings_that_cannot_be_continued_are_refused(
    world: World, adapter: Path, changes: dict[str, Any], named: str
) -> None:
    change_config(adapter, **changes)
    failure = fails(world)
    assert failure.reason == "AdapterUnsupported"
    assert named in failure.message


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"target_modules": 5}, "rank: 4, alpha: 16"),
        ({"target_modules": [5, "v_proj"]}, "rank: 4, alpha: 16, targetModules: [v_proj]"),
        ({"target_modules": ".*(q|v)_proj$"}, "rank: 4, alpha: 16"),
        ({"modules_to_save": 5}, "rank: 4, alpha: 16, targetModules: [q_proj, v_proj]"),
        ({"modules_to_save": "lm_head"}, "rank: 4, alpha: 16, targetModules: [q_proj, v_proj]"),
    ],
)
def test_odd_settings_are_not_listed(
    world: World, adapter: Path, changes: dict[str, Any], settings: str
) -> None:
    change_config(adapter, **changes)
    remedy = fails(world, {"type": "LoRA"}).remedy
    assert remedy == f"Set method to {{type: LoRA, lora: {{{settings}}}}}."


def test_the_layers_of_a_pattern_are_those_of_the_weights(world: World, adapter: Path) -> None:
    change_config(adapter, target_modules=".*(q|v)_proj$")
    continue_adapter(world)
    remedy = fails_again(world, {"type": "LoRA", "lora": {"rank": 4, "alpha": 16}}).remedy
    assert remedy is not None
    assert "targetModules: [q_proj, v_proj]}}." in remedy


def test_experts_are_listed(world: World, hub: Hub, tmp_path: Path) -> None:
    model = tiny_mixtral(tmp_path / "mixtral")
    use_model(hub, model)
    method = {"type": "LoRA", "lora": {**LORA, "dropout": 0}}
    with_experts = {**method, "moe": {"experts": True}}
    write_adapter(world.root / "pvc" / "adapters" / "first", model, with_experts)
    continue_adapter(world, with_experts)
    for other in (method, {"type": "LoRA"}):
        remedy = fails_again(world, other).remedy
        assert remedy is not None
        assert (
            "lora: {rank: 4, alpha: 16, targetModules: [q_proj, v_proj], dropout: 0}, "
            "moe: {experts: true}}." in remedy
        )


def test_the_head_of_a_reward_model_is_not_listed(world: World, adapter: Path) -> None:
    change_config(adapter, task_type="SEQ_CLS", modules_to_save=["classifier", "score"])
    remedy = fails(world, {"type": "LoRA"}).remedy
    assert remedy is not None
    assert "modulesToSave" not in remedy


def test_a_base_in_a_folder_is_not_compared(world: World, adapter: Path) -> None:
    change_config(adapter, base_model_name_or_path="/mnt/models/some-name")
    continue_adapter(world)


def rename(tensors: dict[str, torch.Tensor]) -> None:
    name = next(iter(tensors))
    tensors[name.replace("layers.", "layers.7")] = tensors.pop(name)


def cut(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if "lora_A" in name)
    tensors[name] = tensors[name][:, :8].contiguous()


def quantise(tensors: dict[str, torch.Tensor]) -> None:
    name = next(iter(tensors))
    tensors[name] = tensors[name].to(torch.int8)


@pytest.mark.parametrize("damage", [rename, cut, quantise])
def test_weights_that_do_not_fit_the_model_are_refused(
    world: World, adapter: Path, damage: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    tensors = load_file(adapter / ADAPTER_WEIGHTS)
    damage(tensors)
    save_file(tensors, adapter / ADAPTER_WEIGHTS)
    assert fails(world).reason == "AdapterUnsupported"


def test_copies_of_a_shared_weight_that_differ_are_refused(
    world: World, tiny_model_folder: Path
) -> None:
    method = {"type": "LoRA", "lora": {**LORA, "modulesToSave": ["embed_tokens", "lm_head"]}}
    folder = write_adapter(world.root / "pvc" / "adapters" / "first", tiny_model_folder, method)
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    tensors["base_model.model.lm_head.weight"] += 1
    save_file(tensors, folder / ADAPTER_WEIGHTS)
    failure = fails(world, method)
    assert failure.reason == "AdapterUnsupported"
    assert "one weight for both" in failure.message


@pytest.mark.parametrize("missing", [ADAPTER_CONFIG, ADAPTER_WEIGHTS])
def test_an_incomplete_adapter_is_refused(world: World, adapter: Path, missing: str) -> None:
    (adapter / missing).rename(adapter / "adapter_model.bin")
    failure = fails(world)
    assert failure.reason == "AdapterIncomplete"
    assert missing in failure.message


def test_a_truncated_adapter_is_refused(world: World, adapter: Path) -> None:
    content = (adapter / ADAPTER_WEIGHTS).read_bytes()
    (adapter / ADAPTER_WEIGHTS).write_bytes(content[:-10])
    assert fails(world).reason == "ModelIncomplete"


def test_a_config_that_is_not_json_is_refused(world: World, adapter: Path) -> None:
    (adapter / ADAPTER_CONFIG).write_text("{")
    assert fails(world).reason == "ModelIncomplete"


def copy_tokenizer(model: Path, adapter: Path) -> None:
    for path in model.glob("*token*.json"):
        shutil.copyfile(path, adapter / path.name)


def test_the_tokenizer_of_the_base_is_accepted(
    world: World, adapter: Path, tiny_model_folder: Path
) -> None:
    copy_tokenizer(tiny_model_folder, adapter)
    continue_adapter(world)


@pytest.mark.parametrize("name", ["tokenizer.json", "sentencepiece.bpe.model", "tekken.json"])
def test_a_tokenizer_that_cannot_be_read_is_refused(
    world: World, adapter: Path, tiny_model_folder: Path, name: str
) -> None:
    copy_tokenizer(tiny_model_folder, adapter)
    (adapter / "tokenizer.json").unlink()
    (adapter / name).write_text("{")
    failure = fails(world)
    assert failure.reason == "AdapterUnsupported"
    assert "pvc://adapters/first" in failure.message
    assert failure.remedy is not None
    assert "remove" in failure.remedy


def test_another_tokenizer_is_refused(world: World, adapter: Path, tiny_model_folder: Path) -> None:
    copy_tokenizer(tiny_model_folder, adapter)
    path = adapter / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    added = {**tokenizer["added_tokens"][-1], "id": 2048, "content": "<|tool|>"}
    tokenizer["added_tokens"].append(added)
    path.write_text(json.dumps(tokenizer))
    failure = fails(world)
    assert failure.reason == "AdapterUnsupported"
    assert "'<|tool|>'" in failure.message


def test_another_chat_template_is_refused_until_the_job_names_one(
    world: World, hub: Hub, adapter: Path, tmp_path: Path
) -> None:
    copy_tokenizer(tiny_model(tmp_path / "other", template=CHATML_GENERATION), adapter)
    failure = fails(world)
    assert failure.reason == "AdapterUnsupported"
    assert "chat template" in failure.message
    continue_adapter(world, tokenizer={"chatTemplate": CHATML_GENERATION})


def test_an_adapter_as_the_model_is_refused_with_the_remedy(
    world: World, hub: Hub, adapter: Path
) -> None:
    use_model(hub, adapter)
    failure = world.fails()
    assert failure.reason == "UnsupportedModel"
    assert failure.remedy is not None
    assert "model.adapter.uri" in failure.remedy
