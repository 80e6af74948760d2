"""Models that take images, trained on text (case D03 and its kind)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer import methods
from finetune_trainer.data.packing_support import UNPACKABLE
from finetune_trainer.evaluate import evaluate
from finetune_trainer.runtime.telemetry import Report
from finetune_trainer.sources.cache import MARKER
from finetune_trainer.sources.model_files import PROCESSOR_FILES
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.trainer.image_models import IMAGE_MODELS, gemma3
from tests.trainer.jobs import make_run, to_json, torchrun, write_data
from tests.trainer.prepare_world import World, use_model
from tests.trainer.servers import Hub
from tests.trainer.tiny import set_config, tiny_model
from tests.trainer.whole_job import single_rank, train, train_and_export

VISION = ("vision_tower", "visual", "multi_modal_projector")


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


@pytest.mark.parametrize("kind", IMAGE_MODELS)
def test_prepare_accepts_it_with_its_processor(
    world: World, hub: Hub, folders: dict[str, Path], kind: str
) -> None:
    use_model(hub, folders[kind])
    result = world.prepare()
    assert result.model is not None
    assert (result.model.layers, result.model.hidden_size) == (2, 64)
    cached = world.root / "cache" / result.model.folder
    assert (cached / "preprocessor_config.json").is_file()


@pytest.mark.parametrize("content", ["{", "[]", '{"size": NaN}'])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (gemma3, "preprocessor_config.json"),
        (gemma3, "chat_template.json"),
        (tiny_model, "processor_config.json"),
    ],
)
def test_a_broken_file_of_the_processor_is_refused_before_training(
    world: World, hub: Hub, tmp_path: Path, make: Any, name: str, content: str
) -> None:
    model = make(tmp_path / "models" / "broken")
    (model / name).write_text(content)
    use_model(hub, model)
    failure = world.fails()
    assert failure.reason == "ModelIncomplete"
    assert name in failure.message


def test_a_model_that_was_cached_without_its_processor_is_fetched_again(
    world: World, hub: Hub, folders: dict[str, Path]
) -> None:
    """As releases that did not know these files have left it."""
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


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *[(kind, "LoRA") for kind in IMAGE_MODELS],
        ("gemma3", "Full"),
        ("qwen3_vl", "Full"),
        ("gemma3", "QLoRA"),
        ("llava", "IA3"),
    ],
)
def test_the_language_model_is_trained_and_the_tower_is_exported_as_it_was(
    tmp_path: Path, folders: dict[str, Path], kind: str, method: str
) -> None:
    length = 1 if kind in UNPACKABLE else 96
    artifact = train_and_export(tmp_path, folders[kind], method=method, max_length=length)
    before, after = weights(folders[kind]), weights(artifact)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not {name for name in changed if any(part in name for part in VISION)}
    if method == "LoRA":
        adapter = load_file(tmp_path / "job" / "output" / "adapter_model.safetensors")
        assert not [name for name in adapter if any(part in name for part in VISION)]
    for name in ("preprocessor_config.json", "processor_config.json"):
        wanted = json.loads((folders[kind] / name).read_text())
        assert json.loads((artifact / name).read_text()) == wanted


@pytest.mark.parametrize("kind", ["gemma3", "llava"])
def test_the_processor_loads_from_the_artifact(
    tmp_path: Path, folders: dict[str, Path], kind: str
) -> None:
    artifact = train_and_export(tmp_path, folders[kind])
    processor = AutoProcessor.from_pretrained(artifact)
    assert processor.image_processor is not None
    assert processor.tokenizer.chat_template == processor.chat_template


def test_the_processors_template_becomes_that_of_the_job(tmp_path: Path) -> None:
    model = gemma3(tmp_path / "models" / "gemma3")
    (model / "chat_template.json").write_text(json.dumps({"chat_template": "old"}))
    artifact = train_and_export(tmp_path, model)
    template = json.loads((artifact / "chat_template.json").read_text())["chat_template"]
    assert "<|im_start|>" in template
    assert AutoProcessor.from_pretrained(artifact).chat_template == template


def test_the_files_of_a_processor_beside_a_language_model_are_kept(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "models" / "tiny")
    settings = {"image_processor_type": "Gemma3ImageProcessor"}
    (model / "preprocessor_config.json").write_text(json.dumps(settings))
    artifact = train_and_export(tmp_path, model)
    assert json.loads((artifact / "preprocessor_config.json").read_text()) == settings


@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_it_is_evaluated(tmp_path: Path, folders: dict[str, Path], method: str) -> None:
    settings: dict[str, Any] = {"method": method, "steps": 20, "evaluation": {"generations": 3}}
    train(tmp_path, folders["gemma3"], **settings)
    run = make_run(tmp_path, folders["gemma3"], stage="evaluate", world_size=1, **settings)
    result = evaluate(run, Report("evaluate", 1))
    assert result.evaluation is not None
    assert result.evaluation.loss is not None
    assert result.evaluation.loss.tuned < result.evaluation.loss.base - 0.05


def test_two_ranks_train_it_under_every_strategy(tmp_path: Path, folders: dict[str, Path]) -> None:
    cases = []
    for strategy, method in [("DDP", "LoRA"), ("DDP", "Full"), ("FSDP", "Full"), ("ZeRO3", "LoRA")]:
        name = f"{strategy}-{method}"
        write_data(tmp_path / name / "job" / "data", folders["gemma3"])
        run = make_run(
            tmp_path / name, folders["gemma3"], method=method, strategy=strategy, steps=2
        )
        cases.append({"name": name, "run": to_json(run)})
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    torchrun(2, "tests.trainer.drive_training", str(tmp_path / "cases.json"))
    for case in cases:
        for rank in range(2):
            result = json.loads((tmp_path / f"{case['name']}-{rank}.json").read_text())
            assert result["finished"], case["name"]


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
    assert not [name for name in gradients[0] if any(part in name for part in VISION)]
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
def test_other_models_that_take_images_are_refused_before_training(
    world: World, hub: Hub, tmp_path: Path, kind: str, architecture: str
) -> None:
    folder = set_config(
        tiny_model(tmp_path / "model"), model_type=kind, architectures=[architecture]
    )
    use_model(hub, folder)
    failure = world.fails()
    assert failure.reason == "UnsupportedModel"
    assert f"{kind} takes images" in failure.message
    assert "gemma3" in failure.remedy
    assert "model.safetensors" not in hub.fetched


def test_a_model_without_its_processor_is_refused(world: World, hub: Hub, tmp_path: Path) -> None:
    folder = gemma3(tmp_path / "model")
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).unlink()
    use_model(hub, folder)
    failure = world.fails()
    assert failure.reason == "ModelIncomplete"
    assert "preprocessor_config.json and processor_config.json are missing" in failure.message


def test_it_does_not_become_a_reward_model(
    world: World, hub: Hub, folders: dict[str, Path]
) -> None:
    use_model(hub, folders["gemma3"])
    pairs = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(9)]
    world.rows("rows.jsonl", pairs)
    assert world.fails(objective="Reward").reason == "NoRewardHead"


def test_sizes_that_a_release_leaves_out_are_those_of_the_architecture(
    world: World, hub: Hub, tmp_path: Path
) -> None:
    folder = gemma3(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert config["text_config"].pop("rms_norm_eps") == 1e-6
    assert config["text_config"].pop("max_position_embeddings") == 512
    use_model(hub, set_config(folder, **config))
    facts = world.prepare().model
    assert facts is not None
    assert facts.context_length == 131072
