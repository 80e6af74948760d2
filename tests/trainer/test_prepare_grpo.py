"""The prepare stage of GRPO: prompts with their references, rewards and the reward model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_operator.jobs.stages.prepare import sources
from finetune_trainer.data.token_store import IGNORED
from finetune_trainer.data.tokenizer import load_tokenizer
from finetune_trainer.sources import Credentials
from finetune_trainer.sources.job_sources import (
    REWARD,
    SECRET_PREFIXES,
    JobSources,
    list_data_sources,
)

from tests.trainer.data.test_tokenizer import DATED
from tests.trainer.prepare_world import World, facts_of, found, held_out, stores
from tests.trainer.servers import Hub, Repository
from tests.trainer.tiny import CHATML, HIDDEN, change_weights, set_config, tiny_model, tiny_rows

FUNCTION = {"rewards": [{"type": "exactMatch"}], "maxNewTokens": 32}


def test_prompts_go_to_training_with_their_references(
    world: World, tiny_model_folder: Path
) -> None:
    facts = facts_of(world.prepare(objective="GRPO", grpo=FUNCTION))
    assert (facts.format, facts.packed) == ("prompt", False)
    train, judged = stores(world)
    assert train.sequence_count == facts.train_sequences == facts.train_examples
    lines = [json.loads(line) for line in (world.data / "train.jsonl").read_text().splitlines()]
    assert len(lines) == train.sequence_count
    references = {row["prompt"]: row["completion"] for row in tiny_rows(100)}
    tokenizer = load_tokenizer(tiny_model_folder)
    for store, shown in ((train, lines), (judged, held_out(world))):
        for index, line in enumerate(shown):
            row = store.sequence(index)
            assert set(row.labels.tolist()) == {IGNORED}
            served = tokenizer.apply_chat_template(line["messages"], add_generation_prompt=True)
            assert row.input_ids.tolist() == served["input_ids"]
            assert line["reference"] == references[line["messages"][0]["content"]]


def test_answers_leave_space_for_the_prompt(world: World) -> None:
    failure = world.fails(objective="GRPO", grpo={**FUNCTION, "maxNewTokens": 128})
    assert failure.reason == "AnswerTooLong"
    failure = world.fails(objective="GRPO", grpo={**FUNCTION, "maxNewTokens": 120})
    assert (failure.reason, failure.file) == ("PromptTooLong", "rows.jsonl")
    assert failure.line


JUDGE = {
    "architectures": ["LlamaForSequenceClassification"],
    "id2label": {"0": "LABEL_0"},
}


WITH_REWARD_MODEL = {"rewardModel": {"uri": "hf://acme/judge"}, "maxNewTokens": 32}


def add_reward_model(
    world: World, hub: Hub, folder: Path, template: str = CHATML, **config: Any
) -> None:
    tiny_model(folder, template)
    set_config(folder, **{**JUDGE, **config})
    change_weights(folder, lambda t: t.update({"score.weight": np.ones((1, HIDDEN), np.float32)}))
    hub.repositories["acme/judge"] = Repository(folder, token="hf_of_the_judge")
    secret = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_of_the_judge"}
    world.secrets["grpo.rewardModel"] = Credentials(secret)


def test_reward_model_is_fetched_into_its_own_entry(world: World, hub: Hub, tmp_path: Path) -> None:
    add_reward_model(world, hub, tmp_path / "judge")
    result = world.prepare(objective="GRPO", grpo=WITH_REWARD_MODEL)
    assert result.reward is not None
    assert result.reward.architecture == "LlamaForSequenceClassification"
    assert (world.root / "judges" / result.reward.folder / "model.safetensors").is_file()
    again = world.prepare(objective="GRPO", grpo=WITH_REWARD_MODEL)
    assert found(again) == found(result)
    assert world.prepare().reward is None


def test_date_of_the_reward_models_template_counts_too(
    world: World, hub: Hub, tmp_path: Path
) -> None:
    add_reward_model(world, hub, tmp_path / "judge", template=DATED)
    result = world.prepare(today="2024-02-29", objective="GRPO", grpo=WITH_REWARD_MODEL)
    assert facts_of(result).date == "2024-02-29"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "not a sequence classifier"),
        ({"id2label": {"0": "no", "1": "yes"}}, "2 outputs"),
        ({"id2label": None}, "2 outputs"),
    ],
)
def test_model_that_gives_no_reward_is_reported_before_any_weights(
    world: World, hub: Hub, tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    add_reward_model(world, hub, tmp_path / "judge", **config)
    failure = world.fails(objective="GRPO", grpo=WITH_REWARD_MODEL)
    assert failure.reason == "NotARewardModel"
    assert words in failure.message
    assert "model.safetensors" not in hub.fetched


def test_operator_and_stage_agree_on_the_secret_of_each_source(world: World) -> None:
    train = [{"uri": f"pvc://data/{index}.jsonl"} for index in range(16)]
    validation = {"uri": "pvc://data/check.jsonl"}
    config = world.run_config(
        model={"adapter": {"uri": "pvc://adapters/first"}},
        objective="GRPO",
        grpo=WITH_REWARD_MODEL,
        dataset={"train": train, "validation": validation},
    )
    spec = config.spec
    prefixes = {id(source): prefix for source, prefix in sources(spec)}
    named = [
        ("model", spec.model),
        ("model.adapter", spec.model.adapter),
        *list_data_sources(spec),
    ]
    assert {where: prefixes[id(source)] for where, source in named} == {
        where: prefix for where, prefix in SECRET_PREFIXES.items() if where != REWARD
    }
    secrets = {where: Credentials({"TOKEN": where}) for where in SECRET_PREFIXES}
    job_sources = JobSources(config, secrets, lambda *_: None)
    for where, source in list_data_sources(spec):
        address = job_sources.address("dataset", source, where)
        assert address.credentials.get("TOKEN") == address.spec_field == where


def test_no_secret_is_written(world: World, hub: Hub, tmp_path: Path) -> None:
    add_reward_model(world, hub, tmp_path / "judge")
    world.prepare(objective="GRPO", grpo=WITH_REWARD_MODEL)
    for folder in ("job", "cache", "judges"):
        files = [path for path in (world.root / folder).rglob("*") if path.is_file()]
        assert files, folder
        for path in files:
            assert b"hf_of_the_judge" not in path.read_bytes()


def test_pattern_that_would_hang_is_reported_before_any_download(world: World, hub: Hub) -> None:
    rewards = [{"type": "regex", "pattern": "(a+)+$"}]
    failure = world.fails(objective="GRPO", grpo={"rewards": rewards})
    assert failure.reason == "BadPattern"
    assert hub.fetched == []


def test_reward_model_without_its_head_is_refused(world: World, hub: Hub, tmp_path: Path) -> None:
    add_reward_model(world, hub, tmp_path / "judge")
    change_weights(tmp_path / "judge", lambda tensors: tensors.pop("score.weight"))
    hub.repositories["acme/judge"] = Repository(tmp_path / "judge", token="hf_of_the_judge")
    failure = world.fails_again(objective="GRPO", grpo=WITH_REWARD_MODEL)
    assert failure.reason == "ModelIncomplete"
    assert "lack score.weight" in failure.message
