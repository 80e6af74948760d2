"""Models that take images, trained on text."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.failure import Failure
from finetune_trainer import methods
from finetune_trainer.data.packing_support import UNPACKABLE
from finetune_trainer.evaluate import evaluate
from finetune_trainer.export import copy_processor_files
from finetune_trainer.methods.weight_check import build_empty_model, check_weights
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.runtime.telemetry import Report
from finetune_trainer.sources.cache import MARKER
from finetune_trainer.sources.model_facts import (
    check_can_be_reward_model,
    complete_text_config,
    context_length,
    model_sizes,
    read_headers,
)
from finetune_trainer.sources.model_files import PROCESSOR_FILES, check_config
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.trainer import pool
from tests.trainer.drive_training import drive
from tests.trainer.image_models import IMAGE_MODELS, gemma3
from tests.trainer.jobs import Runs, make_run, to_json, write_data
from tests.trainer.prepare_world import World, use_model
from tests.trainer.servers import Hub
from tests.trainer.tiny import set_config
from tests.trainer.whole_job import single_rank, train, train_and_export

VISION = ("vision_tower", "visual", "multi_modal_projector")
TRAINED = [("gemma3", "Full"), ("llava", "QLoRA")]
SHARDED = [("DDP", "LoRA"), ("FSDP", "Full")]
if os.environ.get("FINETUNE_MATRIX") == "all":
    TRAINED += [
        *((kind, "LoRA") for kind in IMAGE_MODELS),
        ("qwen3_vl", "Full"),
        ("gemma3", "QLoRA"),
        ("llava", "IA3"),
    ]
    SHARDED += [("DDP", "Full"), ("ZeRO3", "LoRA")]


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with single_rank(tmp_path_factory.mktemp("meeting")):
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: make(root / kind) for kind, make in IMAGE_MODELS.items()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """By the names in memory, which the saved ones differ from."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return dict(model.named_parameters())


def is_vision(name: str) -> bool:
    return any(part in name for part in VISION)


def failure_of(work: Callable[..., Any], *arguments: Any) -> Failure:
    with pytest.raises(UserError) as caught:
        work(*arguments)
    return caught.value.failure


@pytest.mark.parametrize("kind", IMAGE_MODELS)
def test_files_of_every_kind_are_accepted(folders: dict[str, Path], kind: str) -> None:
    folder = folders[kind]
    config = complete_text_config(folder, check_config(folder, "model"), "model")
    sizes = model_sizes(config, "model")
    assert (sizes["layers"], sizes["hidden_size"]) == (2, 64)
    headers = read_headers(folder, ["model.safetensors"])
    check_weights(folder, headers, "model", build_empty_model(folder, "model"))


@pytest.mark.parametrize("method", ["LoRA", "Full"])
@pytest.mark.parametrize("kind", IMAGE_MODELS)
def test_only_the_language_model_is_trained(
    folders: dict[str, Path], kind: str, method: str
) -> None:
    run = make_run(folders[kind], folders[kind], method=method)
    empty = methods.make_meta_model(folders[kind], torch.float32, "sdpa")
    model = methods.apply_method(empty, run.spec, 2)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert [name for name in trained if "layers.1.self_attn.q_proj" in name]
    assert not [name for name in trained if is_vision(name)]


@pytest.mark.parametrize("content", ["{", "[]", '{"size": NaN}'])
@pytest.mark.parametrize("name", ["preprocessor_config.json", "chat_template.json"])
def test_a_broken_file_of_the_processor_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / name).write_text(content)
    failure = failure_of(check_config, tmp_path, "model")
    assert failure.reason == "ModelIncomplete"
    assert name in failure.message


def test_a_model_that_an_older_release_cached_without_its_processor_is_fetched_again(
    world: World, hub: Hub, folders: dict[str, Path]
) -> None:
    use_model(hub, folders["gemma3"])
    result = world.prepare()
    assert result.model is not None
    cached = world.root / "cache" / result.model.folder
    marker = json.loads((cached / MARKER).read_text())
    for name in PROCESSOR_FILES:
        (cached / name).unlink(missing_ok=True)
        marker["files"].pop(name, None)
    (cached / MARKER).write_text(json.dumps(marker))
    assert world.prepare().model == result.model
    assert (cached / "preprocessor_config.json").is_file()


def test_the_artifact_loads_with_its_processor(tmp_path: Path) -> None:
    model = gemma3(tmp_path / "models" / "gemma3")
    (model / "chat_template.json").write_text(json.dumps({"chat_template": "old"}))
    artifact = train_and_export(tmp_path, model, method="LoRA")
    assert_tower_unchanged(model, artifact)
    adapter = load_file(tmp_path / "job" / "output" / "adapter_model.safetensors")
    assert not [name for name in adapter if is_vision(name)]
    processor = AutoProcessor.from_pretrained(artifact)
    assert processor.image_processor is not None
    assert "<|im_start|>" in processor.chat_template
    assert processor.tokenizer.chat_template == processor.chat_template
    for name in ("preprocessor_config.json", "processor_config.json"):
        assert json.loads((artifact / name).read_text()) == json.loads((model / name).read_text())


@pytest.mark.parametrize(("kind", "method"), TRAINED)
def test_the_tower_is_exported_unchanged(
    tmp_path: Path, folders: dict[str, Path], kind: str, method: str
) -> None:
    length = 1 if kind in UNPACKABLE else 96
    artifact = train_and_export(tmp_path, folders[kind], method=method, max_length=length)
    assert_tower_unchanged(folders[kind], artifact)


def assert_tower_unchanged(base: Path, artifact: Path) -> None:
    before, after = weights(base), weights(artifact)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed
    assert not [name for name in changed if is_vision(name)]


def test_processor_files_of_a_language_model_are_kept_and_get_the_template(tmp_path: Path) -> None:
    base, artifact = tmp_path / "base", tmp_path / "artifact"
    base.mkdir()
    artifact.mkdir()
    image = {"image_processor_type": "Gemma3ImageProcessor"}
    (base / "preprocessor_config.json").write_text(json.dumps(image))
    (base / "chat_template.json").write_text(json.dumps({"chat_template": "old"}))
    copy_processor_files(base, artifact, "new")
    copied = {path.name: json.loads(path.read_text()) for path in artifact.iterdir()}
    assert copied == {
        "preprocessor_config.json": image,
        "chat_template.json": {"chat_template": "new"},
    }


@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_it_is_evaluated(tmp_path: Path, folders: dict[str, Path], method: str) -> None:
    settings: dict[str, Any] = {"method": method, "steps": 20, "evaluation": {"generations": 3}}
    train(tmp_path, folders["gemma3"], **settings)
    run = make_run(tmp_path, folders["gemma3"], stage="evaluate", world_size=1, **settings)
    result = evaluate(run, Report("evaluate", 1))
    assert result.evaluation is not None
    loss = result.evaluation.find("loss")
    assert loss is not None
    assert loss.improvement > 0.05


def test_two_ranks_train_it(tmp_path: Path, folders: dict[str, Path]) -> None:
    cases = []
    for strategy, method in SHARDED:
        name = f"{strategy}-{method}"
        write_data(tmp_path / name / "job" / "data", folders["gemma3"])
        run = make_run(
            tmp_path / name, folders["gemma3"], method=method, strategy=strategy, steps=2
        )
        cases.append({"name": name, "run": to_json(run)})
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    pool.run(drive, tmp_path / "cases.json", world=2, folder=tmp_path / "logs")
    for case in cases:
        results = [Runs(tmp_path).case_result(case["name"], rank) for rank in (0, 1)]
        assert all(result["finished"] for result in results), case["name"]


def test_gradient_checkpointing_changes_nothing(folders: dict[str, Path]) -> None:
    ids = torch.randint(5, 1000, (2, 16), generator=torch.Generator().manual_seed(0))
    gradients = []
    for is_checkpointed in (False, True):
        run = make_run(
            folders["gemma3"],
            folders["gemma3"],
            method="Full",
            training={"gradientCheckpointing": is_checkpointed},
        )
        model = methods.load_base_model(folders["gemma3"], torch.float32)
        model = methods.apply_method(model, run.spec, 2)
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append(
            {name: w.grad for name, w in model.named_parameters() if w.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    assert not [name for name in gradients[0] if is_vision(name)]
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        ("paligemma", "PaliGemmaForConditionalGeneration"),
        ("mllama", "MllamaForConditionalGeneration"),
        ("gemma3n", "Gemma3nForConditionalGeneration"),
        ("llama4", "Llama4ForConditionalGeneration"),
        ("idefics3", "Idefics3ForConditionalGeneration"),
    ],
)
def test_other_models_that_take_images_are_refused(
    tmp_path: Path, kind: str, architecture: str
) -> None:
    config = {"model_type": kind, "architectures": [architecture]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    failure = failure_of(check_config, tmp_path, "model")
    assert failure.reason == "UnsupportedModel"
    assert f"{kind} takes images" in failure.message
    assert "gemma3" in (failure.remedy or "")


def test_a_model_without_its_processor_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma3"}')
    failure = failure_of(check_config, tmp_path, "model")
    assert failure.reason == "ModelIncomplete"
    assert "preprocessor_config.json and processor_config.json are missing" in failure.message


def test_it_does_not_become_a_reward_model() -> None:
    failure = failure_of(check_can_be_reward_model, {"model_type": "gemma3"}, "model")
    assert failure.reason == "NoRewardHead"


def test_sizes_that_a_release_leaves_out_are_those_of_the_architecture(tmp_path: Path) -> None:
    folder = gemma3(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert config["text_config"].pop("rms_norm_eps") == 1e-6
    assert config["text_config"].pop("max_position_embeddings") == 512
    set_config(folder, **config)
    assert context_length(complete_text_config(folder, config, "model")) == 131072
