"""Generation settings of a model that cannot be saved as they are (case D01 and its kind)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from tests.trainer.prepare_world import World, use_model
from tests.trainer.servers import Hub
from tests.trainer.tiny import set_config, tiny_model
from tests.trainer.whole_job import single_rank, train_and_export

TOKENS = {"eos_token_id": 2, "pad_token_id": 0}


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with single_rank(tmp_path_factory.mktemp("meeting")):
        yield


def model_with(folder: Path, settings: Any) -> Path:
    tiny_model(folder)
    text = settings if isinstance(settings, str) else json.dumps(settings)
    (folder / "generation_config.json").write_text(text)
    return folder


@pytest.mark.parametrize("method", ["LoRA", "Full"])
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.9, "top_p": 0.6},
        {"do_sample": False, "top_k": 20, "repetition_penalty": 1.05},
        {"do_sample": None, "min_p": 0.1, "max_length": 64, "max_new_tokens": 8},
        {"do_sample": True, "temperature": 0.7, "chat_format": "chatml", "eos_token_id": [2, 1]},
    ],
)
def test_settings_for_sampling_survive_training_and_export(
    tmp_path: Path, settings: dict[str, Any], method: str
) -> None:
    model = model_with(tmp_path / "models" / "tiny", TOKENS | settings)
    artifact = train_and_export(tmp_path, model, method=method)
    saved = json.loads((artifact / "generation_config.json").read_text())
    # Servers stop at every token that ends a turn: a list in any case.
    assert {
        name: saved[name] for name in settings if name not in ("do_sample", "eos_token_id")
    } == {
        name: value for name, value in settings.items() if name not in ("do_sample", "eos_token_id")
    }
    assert saved["do_sample"] is True
    assert set(saved["eos_token_id"]) == ({2, 1} if "eos_token_id" in settings else {2})
    GenerationConfig.from_pretrained(artifact).validate(strict=True)


def test_settings_without_sampling_stay_greedy(tmp_path: Path) -> None:
    settings = TOKENS | {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "max_new_tokens": 9}
    model = model_with(tmp_path / "models" / "tiny", settings)
    artifact = train_and_export(tmp_path, model)
    saved = json.loads((artifact / "generation_config.json").read_text())
    assert not saved.get("do_sample")
    assert saved["max_new_tokens"] == 9


def test_settings_in_config_json_count_where_there_is_no_other_file(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "models" / "tiny")
    (model / "generation_config.json").unlink()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"temperature": 0.6}))
    artifact = train_and_export(tmp_path, model)
    saved = json.loads((artifact / "generation_config.json").read_text())
    assert (saved["temperature"], saved["do_sample"]) == (0.6, True)


def test_the_artifact_names_no_code_that_it_does_not_have(tmp_path: Path) -> None:
    code = {"AutoModelForCausalLM": "modeling_own.OwnModel"}
    model = set_config(tiny_model(tmp_path / "models" / "tiny"), auto_map=code)
    artifact = train_and_export(tmp_path, model)
    assert "auto_map" not in json.loads((artifact / "config.json").read_text())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": 0}, "temperature is 0, and must be a number above 0"),
        ({"temperature": "0.7", "do_sample": True}, "temperature is '0.7'"),
        ({"do_sample": "yes"}, "do_sample is 'yes', and must be true or false"),
        ({"do_sample": True, "top_p": 1.5}, "top_p is 1.5"),
        ({"pad_token_id": [0]}, "pad_token_id is [0]"),
        ({"pad_token_id": -1}, "pad_token_id is -1"),
        ({"eos_token_id": "2"}, "eos_token_id is '2', and must be a token id or a list"),
        ({"eos_token_id": [2, None]}, "eos_token_id is [2, None]"),
        ({"early_stopping": "always"}, "`early_stopping` must be a boolean or 'never'"),
        ({"early_stopping": True}, "only used in beam-based generation modes"),
        ({"length_penalty": 1.5}, "only used in beam-based generation modes"),
        ({"num_return_sequences": 4}, "Greedy methods"),
        ({"output_scores": True}, "`return_dict_in_generate` is NOT set to `True`"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be greater than 0"),
        ({"cache_implementation": "endless"}, "Invalid `cache_implementation`"),
        ({"streamer": "stdout"}, "`streamer` is not a valid argument"),
        ({"watermarking_config": {"paint": "red"}}, "paint"),
        ({"suppress_tokens": [2], "forced_eos_token_id": 2}, "`forced_eos_token_id`"),
    ],
)
def test_settings_that_cannot_be_saved_are_refused_by_prepare(
    world: World, hub: Hub, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    use_model(hub, model_with(tmp_path / "model", TOKENS | settings))
    failure = world.fails()
    assert failure.reason == "BadGenerationConfig"
    assert words in failure.message
    assert failure.file == "generation_config.json"
    assert "model.safetensors" not in hub.fetched


@pytest.mark.parametrize("content", ["{", "[]", '"greedy"'])
def test_a_file_that_holds_no_settings_is_refused(
    world: World, hub: Hub, tmp_path: Path, content: str
) -> None:
    use_model(hub, model_with(tmp_path / "model", content))
    failure = world.fails()
    assert failure.reason == "ModelIncomplete"
    assert "generation_config.json is not" in failure.message


def test_a_reward_model_generates_nothing_and_needs_no_settings(
    world: World, hub: Hub, tmp_path: Path
) -> None:
    use_model(hub, model_with(tmp_path / "model", {"early_stopping": True}))
    world.rows(
        "rows.jsonl", [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(9)]
    )
    world.prepare(objective="Reward")
