"""Generation settings of a model that cannot be saved as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.generation_settings import read_generation_settings
from transformers import GenerationConfig

from tests.trainer.prepare_world import World, chat_rows, use_model
from tests.trainer.servers import Hub
from tests.trainer.tiny import set_config, tiny_model
from tests.trainer.whole_job import single_rank, train_and_export

TOKENS = {"eos_token_id": 2, "pad_token_id": 0}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with single_rank(tmp_path_factory.mktemp("meeting")):
        yield


def write_settings(folder: Path, settings: Any) -> Path:
    text = settings if isinstance(settings, str) else json.dumps(settings)
    (folder / "generation_config.json").write_text(text)
    return folder


def save_again(folder: Path) -> dict[str, Any]:
    """The settings of `folder`, as transformers saves them with a model."""
    read_generation_settings(folder, "model").save_pretrained(folder / "saved")
    saved = json.loads((folder / "saved" / "generation_config.json").read_text())
    assert isinstance(saved, dict)
    return saved


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.9, "top_p": 0.6},
        {"do_sample": False, "top_k": 20, "repetition_penalty": 1.05},
        {"do_sample": None, "min_p": 0.1, "max_length": 64, "max_new_tokens": 8},
        {"do_sample": True, "temperature": 0.7, "chat_format": "chatml", "eos_token_id": [2, 1]},
    ],
)
def test_settings_for_sampling_can_be_saved_with_do_sample(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    saved = save_again(write_settings(tmp_path, TOKENS | settings))
    expected = TOKENS | settings | {"do_sample": True}
    assert {name: saved.get(name) for name in expected} == expected


def test_settings_without_sampling_stay_greedy(tmp_path: Path) -> None:
    settings = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "max_new_tokens": 9}
    saved = save_again(write_settings(tmp_path, TOKENS | settings))
    assert not saved.get("do_sample")
    assert saved["max_new_tokens"] == 9


def test_settings_in_config_json_count_where_there_is_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "temperature": 0.6}))
    saved = save_again(tmp_path)
    assert (saved["temperature"], saved["do_sample"]) == (0.6, True)


@pytest.mark.parametrize("method", ["LoRA", "Full"])
@pytest.mark.usefixtures("alone")
def test_the_artifact_has_the_settings_and_no_name_of_missing_code(
    tmp_path: Path, method: str
) -> None:
    settings = {"do_sample": False, "top_k": 20, "chat_format": "chatml", "eos_token_id": [2, 1]}
    model = write_settings(tiny_model(tmp_path / "models" / "tiny"), settings)
    set_config(model, auto_map={"AutoModelForCausalLM": "modeling_own.OwnModel"})
    artifact = train_and_export(tmp_path, model, method=method)
    saved = json.loads((artifact / "generation_config.json").read_text())
    assert (saved["do_sample"], saved["top_k"], saved["chat_format"]) == (True, 20, "chatml")
    assert set(saved["eos_token_id"]) == {2, 1}
    GenerationConfig.from_pretrained(artifact).validate(strict=True)
    assert "auto_map" not in json.loads((artifact / "config.json").read_text())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": 0}, "temperature is 0: Input should be greater than 0"),
        ({"temperature": "0.7", "do_sample": True}, "temperature is '0.7'"),
        ({"temperature": True}, "temperature is True"),
        ({"temperature": 1e999}, "temperature is inf"),
        ({"do_sample": "yes"}, "do_sample is 'yes': Input should be a valid boolean"),
        ({"do_sample": True, "top_p": 1.5}, "top_p is 1.5"),
        ({"pad_token_id": [0]}, "pad_token_id is [0]"),
        ({"pad_token_id": -1}, "pad_token_id is -1"),
        ({"eos_token_id": "2"}, "eos_token_id is '2': Input should be a valid integer"),
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
def test_settings_that_cannot_be_saved_are_refused(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        read_generation_settings(write_settings(tmp_path, TOKENS | settings), "model")
    failure = caught.value.failure
    assert failure.reason == "BadGenerationConfig"
    assert words in failure.message
    assert failure.file == "generation_config.json"


@pytest.mark.parametrize("content", ["{", "[]", '"greedy"'])
def test_a_file_without_settings_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError) as caught:
        read_generation_settings(write_settings(tmp_path, content), "model")
    assert caught.value.failure.reason == "ModelIncomplete"
    assert "generation_config.json is not" in caught.value.failure.message


def test_prepare_refuses_them_before_the_weights_are_fetched(
    world: World, hub: Hub, tmp_path: Path
) -> None:
    settings = TOKENS | {"early_stopping": True}
    use_model(hub, write_settings(tiny_model(tmp_path / "model"), settings))
    assert world.fails().reason == "BadGenerationConfig"
    assert "model.safetensors" not in hub.fetched
    world.rows(
        "rows.jsonl", [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(9)]
    )
    result = world.prepare(objective="Reward")
    assert result.outcome == "Succeeded", "a reward model generates no text"


@pytest.mark.parametrize(
    ("settings", "role", "is_refused"),
    [
        ({"eos_token_id": [2, 0]}, "assistant", True),
        ({"eos_token_id": 0}, "assistant", True),
        ({"eos_token_id": [2, 0]}, "user", False),
        ({"eos_token_id": [2, 99999]}, "assistant", False),
    ],
)
def test_an_answer_with_a_token_that_ends_generation_is_refused(
    world: World, hub: Hub, tmp_path: Path, settings: dict[str, Any], role: str, is_refused: bool
) -> None:
    use_model(hub, write_settings(tiny_model(tmp_path / "model"), settings))
    rows = chat_rows(40)
    turn = next(turn for turn in rows[3]["messages"] if turn["role"] == role)
    turn["content"] = "one <|endoftext|> two"
    world.rows("rows.jsonl", rows)
    if not is_refused:
        assert world.prepare().outcome == "Succeeded"
        return
    failure = world.fails()
    assert (failure.reason, failure.line) == ("BadConversation", 4)
    assert "<|endoftext|>" in failure.message
