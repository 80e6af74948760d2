"""The prepare stage of every objective: the store, the held-out file and the facts."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_operator.jobs.stages.prepare import sources
from finetune_trainer.data.token_store import IGNORED, TokenStore
from finetune_trainer.data.tokenizer import load_job_tokenizer, load_tokenizer
from finetune_trainer.sources import Credentials
from finetune_trainer.sources.job_sources import (
    REWARD,
    SECRET_PREFIXES,
    JobSources,
    list_data_sources,
)

from tests.trainer.data.test_tokenizer import DATED
from tests.trainer.prepare_world import World, facts_of, found, use_model
from tests.trainer.servers import Hub, Repository
from tests.trainer.tiny import CHATML, tiny_model, tiny_rows

END = "<|im_end|>"
FUNCTION = {"rewards": [{"type": "exactMatch"}], "maxNewTokens": 32}


def pairs(count: int) -> list[dict[str, Any]]:
    rows = tiny_rows(count + 1)
    return [
        {"prompt": a["prompt"], "chosen": a["completion"], "rejected": b["completion"]}
        for a, b in itertools.pairwise(rows)
    ]


def held_out(world: World) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (world.data / "eval.jsonl").read_text().splitlines()]


def stores(world: World) -> tuple[TokenStore, TokenStore]:
    return TokenStore.open(world.data / "train"), TokenStore.open(world.data / "eval")


def trained_text(tokenizer: Any, row: Any) -> str:
    return str(tokenizer.decode(row.labels[row.labels != IGNORED]))


@pytest.mark.parametrize("objective", ["DPO", "ORPO", "Reward"])
def test_pairs_are_stored_next_to_each_other(
    world: World, tiny_model_folder: Path, objective: str
) -> None:
    world.rows("rows.jsonl", [*pairs(40), pairs(1)[0]])
    facts = facts_of(world.prepare(objective=objective))
    train, judged = stores(world)
    assert (facts.format, facts.packed) == ("preference", False)
    assert facts.train_examples + facts.eval_examples == 41
    assert facts.duplicate_examples == 1
    assert (train.sequence_count, train.sample_count) == (
        2 * facts.train_sequences,
        2 * facts.train_examples,
    )
    assert judged.sequence_count == 2 * facts.eval_examples
    assert facts.train_tokens == int(train.sequence_lengths.sum())
    tokenizer = load_tokenizer(tiny_model_folder)
    for index, shown in enumerate(held_out(world)):
        chosen, rejected = judged.sequence(2 * index), judged.sequence(2 * index + 1)
        assert trained_text(tokenizer, chosen) == shown["chosen"] + END
        assert trained_text(tokenizer, rejected) == shown["rejected"] + END
        first = int((chosen.labels != IGNORED).argmax())
        assert chosen.input_ids[:first].tolist() == rejected.input_ids[:first].tolist()
        assert shown["messages"][0]["content"] in tokenizer.decode(chosen.input_ids[:first])
    sides = [
        {trained_text(tokenizer, store.sequence(i)) for i in range(0, store.sequence_count, 2)}
        for store in (train, judged)
    ]
    assert not sides[0] & sides[1]


def test_kto_from_pairs_keeps_both_answers_in_one_split(
    world: World, tiny_model_folder: Path
) -> None:
    world.rows("rows.jsonl", pairs(40))
    facts = facts_of(world.prepare(objective="KTO"))
    assert facts.format == "preference"
    assert facts.train_examples + facts.eval_examples == 80
    prompts = []
    for side in ("train", "eval"):
        store = TokenStore.open(world.data / side)
        desirable = np.load(world.data / side / "desirable.npy")
        assert desirable.dtype == np.bool_
        assert len(desirable) == store.sequence_count
        assert desirable.sum() * 2 == store.sequence_count
        tokenizer = load_tokenizer(tiny_model_folder)
        texts = [tokenizer.decode(store.sequence(i).input_ids) for i in range(store.sequence_count)]
        prompts.append({text.split("assistant")[0] for text in texts})
    assert not prompts[0] & prompts[1]
    assert facts.train_sequences == TokenStore.open(world.data / "train").sequence_count
    shown = held_out(world)[0]
    assert set(shown) == {"messages", "completion", "label"}


def test_kto_labels_are_in_the_order_of_the_rows(world: World, tiny_model_folder: Path) -> None:
    rows = [{**row, "label": index % 3 == 0} for index, row in enumerate(tiny_rows(60))]
    world.rows("rows.jsonl", rows)
    known = {row["completion"] + END: row["label"] for row in rows}
    assert facts_of(world.prepare(objective="KTO")).format == "unpaired"
    tokenizer = load_tokenizer(tiny_model_folder)
    for side in ("train", "eval"):
        store = TokenStore.open(world.data / side)
        desirable = np.load(world.data / side / "desirable.npy")
        found = [
            known[trained_text(tokenizer, store.sequence(i))] for i in range(store.sequence_count)
        ]
        assert found == desirable.tolist()


def test_texts_are_packed_completely(world: World, tiny_model_folder: Path) -> None:
    texts = [" ".join(row["completion"] for row in tiny_rows(30, seed)) for seed in range(12)]
    world.rows("rows.jsonl", [{"text": text} for text in texts])
    facts = facts_of(world.prepare(objective="Completion"))
    assert (facts.format, facts.packed) == ("completion", True)
    assert facts.train_examples + facts.eval_examples == 12
    assert facts.truncated_examples == 0
    assert facts.longest_example > 128
    train, judged = stores(world)
    assert train.sample_count > facts.train_examples
    assert int(train.sequence_lengths.max()) <= 128
    tokenizer = load_tokenizer(tiny_model_folder)
    lengths = {len(tokenizer(text)["input_ids"]) + 1 for text in texts}
    assert facts.longest_example in lengths
    shown = held_out(world)
    assert len(shown) == judged.sequence_count
    assert {line["file"] for line in shown} == {"rows.jsonl"}
    assert len({line["line"] for line in shown}) == facts.eval_examples
    row = judged.sequence(0)
    assert row.labels[1:].tolist() == row.input_ids[1:].tolist()


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


def test_prompts_are_trained_on_if_the_job_sets_it(world: World) -> None:
    few = facts_of(world.prepare())
    train, _ = stores(world)
    before = sum(
        int((train.sequence(i).labels != IGNORED).sum()) for i in range(train.sequence_count)
    )
    every = facts_of(world.prepare(sft={"lossOn": "All"}))
    train, _ = stores(world)
    after = sum(
        int((train.sequence(i).labels != IGNORED).sum()) for i in range(train.sequence_count)
    )
    assert few.train_tokens == every.train_tokens == after > before


def test_mixture_repeats_the_small_source_and_counts_both(
    world: World, tiny_model_folder: Path
) -> None:
    world.rows("large.jsonl", tiny_rows(100)[:90])
    world.rows("small.jsonl", tiny_rows(100)[90:])
    world.rows("check.jsonl", tiny_rows(120)[100:])
    dataset = {
        "train": [{"uri": "pvc://data/large.jsonl"}, {"uri": "pvc://data/small.jsonl"}],
        "temperature": 2,
        "validation": {"uri": "pvc://data/check.jsonl"},
    }
    facts = facts_of(world.prepare(dataset=dataset, training={"packing": False}))
    assert (facts.train_examples, facts.train_sequences, facts.eval_examples) == (100, 100, 20)
    assert world.manifest()["mixture"] == [
        {"examples": 90, "drawn": 75},
        {"examples": 10, "drawn": 25},
    ]
    assert [entry["name"] for entry in world.manifest()["sources"]] == [
        "large.jsonl",
        "small.jsonl",
        "check.jsonl",
    ]
    train, _ = stores(world)
    tokenizer = load_tokenizer(tiny_model_folder)
    times = Counter(
        trained_text(tokenizer, train.sequence(index)) for index in range(train.sequence_count)
    )
    small = {row["completion"] + END for row in tiny_rows(100)[90:]}
    assert sum(times[text] for text in small) == 25
    assert {times[text] for text in small} == {2, 3}
    assert train.sample_count == 85, "an example that is repeated is stored once"


def test_weights_of_a_mixture_are_applied(world: World) -> None:
    world.rows("other.jsonl", tiny_rows(200)[100:])
    train = [
        {"uri": "pvc://data/rows.jsonl", "weight": 3},
        {"uri": "pvc://data/other.jsonl", "weight": 1},
    ]
    world.prepare(dataset={"train": train, "holdout": "5%"})
    one, two = world.manifest()["mixture"]
    assert one["drawn"] + two["drawn"] == one["examples"] + two["examples"]
    assert one["drawn"] / two["drawn"] == pytest.approx(
        3 * one["examples"] / two["examples"], rel=0.05
    )


def test_pairs_of_a_mixture_stay_together(world: World, tiny_model_folder: Path) -> None:
    world.rows("rows.jsonl", pairs(60))
    world.rows("few.jsonl", pairs(70)[60:])
    train = [{"uri": "pvc://data/rows.jsonl"}, {"uri": "pvc://data/few.jsonl"}]
    facts = facts_of(world.prepare(objective="DPO", dataset={"train": train, "temperature": 5}))
    store, _ = stores(world)
    assert store.sequence_count == 2 * facts.train_sequences == 2 * facts.train_examples
    tokenizer = load_tokenizer(tiny_model_folder)
    known = {row["chosen"] + END: row["rejected"] + END for row in pairs(70)}
    for index in range(facts.train_sequences):
        chosen, rejected = (trained_text(tokenizer, store.sequence(2 * index + i)) for i in (0, 1))
        assert known[chosen] == rejected


def test_error_in_a_later_source_names_its_file(world: World) -> None:
    world.rows("other.jsonl", [{"prompt": "p", "completion": "c"}, {"prompt": "p"}])
    train = [{"uri": "pvc://data/rows.jsonl"}, {"uri": "pvc://data/other.jsonl"}]
    failure = world.fails(dataset={"train": train})
    assert (failure.reason, failure.file, failure.line) == ("MissingColumn", "other.jsonl", 2)
    world.rows("other.jsonl", [{"messages": [{"role": "user", "content": "a"}]}])
    failure = world.fails(dataset={"train": train})
    assert failure.file == "other.jsonl"


@pytest.mark.parametrize(
    ("changes", "packed"),
    [
        ({}, True),
        ({"training": {"packing": False}}, False),
        ({"training": {"packing": True}}, True),
        ({"method": {"type": "Prefix"}}, False),
    ],
)
def test_rows_are_packed_for_every_architecture_that_supports_it(
    world: World, changes: dict[str, Any], packed: bool
) -> None:
    facts = facts_of(world.prepare(**changes))
    assert facts.packed is packed
    assert (facts.train_sequences < facts.train_examples) is packed


FALCON = {"model_type": "falcon", "architectures": ["FalconForCausalLM"], "head_dim": None}


def test_architecture_that_mixes_examples_is_not_packed(
    world: World, hub: Hub, tmp_path: Path
) -> None:
    use_model(hub, tiny_model(tmp_path / "model"), FALCON)
    failure = world.fails(training={"packing": True})
    assert failure.reason == "PackingUnsupported"
    assert "falcon" in failure.message
    assert "out" in (failure.remedy or "")
    assert "model.safetensors" not in hub.fetched
    facts = facts_of(world.prepare())
    assert not facts.packed
    assert facts.train_sequences == facts.train_examples


def test_date_of_the_template_stays_that_of_the_first_prepare(
    world: World, hub: Hub, tmp_path: Path
) -> None:
    use_model(hub, tiny_model(tmp_path / "dated", template=DATED))
    first = world.prepare(today="2024-02-29")
    assert facts_of(first).date == "2024-02-29"
    files = world.manifest()["files"]
    assert found(world.prepare(today="2024-03-01")) == found(first)
    (world.data / "manifest.json").unlink()
    world.prepare(today="2024-02-29")
    assert world.manifest()["files"] == files
    run = world.run_config().model_copy(update={"model": first.model, "data": first.data})
    store = TokenStore.open(world.data / "eval")
    prompt = held_out(world)[0]["messages"]
    served = load_job_tokenizer(run).apply_chat_template(prompt, add_generation_prompt=True)
    assert store.sequence(0).input_ids[: len(served["input_ids"])].tolist() == served["input_ids"]


def test_template_without_a_date_has_none(world: World) -> None:
    assert facts_of(world.prepare()).date is None


def test_new_tokens_enlarge_the_vocabulary_only_if_it_is_full(
    world: World, hub: Hub, tmp_path: Path
) -> None:
    tokens = {"tokenizer": {"specialTokens": ["<|tool|>", "<|call|>"]}}
    folder = tiny_model(tmp_path / "model")
    size = len(load_tokenizer(folder))
    use_model(hub, folder, {"vocab_size": size - 1})
    failure = world.fails(model=tokens)
    assert failure.reason == "UnsupportedModel"
    for rows, wanted in ((size, size + 2), (size + 1, size + 2), (size + 9, size + 9)):
        use_model(hub, folder, {"vocab_size": rows})
        model = world.prepare(model=tokens).model
        assert model is not None
        assert model.vocabulary == wanted
        shutil.rmtree(world.root / "cache")


def test_every_stage_uses_the_changed_tokenizer(world: World, hub: Hub, tmp_path: Path) -> None:
    use_model(hub, tiny_model(tmp_path / "base", template=None))
    template = "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}<|stop|>{% endfor %}"
    model = {"tokenizer": {"chatTemplate": template, "specialTokens": ["<|turn|>", "<|stop|>"]}}
    result = world.prepare(model=model)
    run = world.run_config(model=model).model_copy(update={"model": result.model})
    tokenizer = load_job_tokenizer(run)
    text = tokenizer.decode(TokenStore.open(world.data / "eval").sequence(0).input_ids)
    assert text.startswith("<|turn|>user: What")
    assert text.endswith("<|stop|>")
    plain = facts_of(world.prepare())
    assert plain.train_tokens != facts_of(result).train_tokens


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_context_grows_by_the_factor_of_rope(world: World, kind: str) -> None:
    model = {"rope": {"type": kind, "factor": 2.5}}
    result = world.prepare(model=model, training={"maxSequenceLength": 1280})
    assert result.model is not None
    assert result.model.context_length == 1280
    failure = world.fails_again(model=model, training={"maxSequenceLength": 1281})
    assert failure.reason == "ContextTooLong"
    assert "1280" in failure.message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "no rotary positions"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "scaled already (linear)",
        ),
    ],
)
def test_positions_that_cannot_be_scaled_are_reported(
    world: World, hub: Hub, tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    use_model(hub, tiny_model(tmp_path / "model"), config)
    failure = world.fails(model={"rope": {"type": "yarn", "factor": 2}})
    assert failure.reason == "RopeUnsupported"
    assert words in failure.message


def test_settings_for_experts_need_experts(world: World) -> None:
    assert world.fails(method={"moe": {}}).reason == "NotMixtureOfExperts"


JUDGE = {
    "architectures": ["LlamaForSequenceClassification"],
    "id2label": {"0": "LABEL_0"},
}
WITH_REWARD_MODEL = {"rewardModel": {"uri": "hf://acme/judge"}, "maxNewTokens": 32}


def add_reward_model(
    world: World, hub: Hub, folder: Path, template: str = CHATML, **config: Any
) -> None:
    tiny_model(folder, template)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **JUDGE, **config}))
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


def test_conversations_of_pairs_need_a_template(world: World, hub: Hub, tmp_path: Path) -> None:
    use_model(hub, tiny_model(tmp_path / "base", template=None))
    world.rows("rows.jsonl", pairs(20))
    assert facts_of(world.prepare(objective="DPO")).format == "preference"
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    talks = [
        {**row, "prompt": [*turns[:2], {**turns[2], "content": row["prompt"]}]} for row in pairs(20)
    ]
    world.rows("rows.jsonl", talks)
    assert world.fails_again(objective="DPO").reason == "NoChatTemplate"


def test_template_of_the_job_makes_up_for_a_missing_one(
    world: World, hub: Hub, tmp_path: Path
) -> None:
    use_model(hub, tiny_model(tmp_path / "base", template=None))
    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}]}
        for i in range(10)
    ]
    world.rows("rows.jsonl", rows)
    facts = facts_of(world.prepare(model={"tokenizer": {"chatTemplate": CHATML}}))
    assert facts.format == "chat"


def test_operator_and_stage_agree_on_the_secret_of_each_source(world: World) -> None:
    train = [{"uri": f"pvc://data/{index}.jsonl"} for index in range(16)]
    validation = {"uri": "pvc://data/check.jsonl"}
    config = world.run_config(
        objective="GRPO", grpo=WITH_REWARD_MODEL, dataset={"train": train, "validation": validation}
    )
    spec = config.spec
    prefixes = {id(source): prefix for source, prefix in sources(spec)}
    named = [("model", spec.model), *list_data_sources(spec)]
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
        for path in (world.root / folder).rglob("*"):
            assert path.is_dir() or b"hf_of_the_judge" not in path.read_bytes()


def test_data_is_synced_before_it_gets_its_name(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[str] = set()
    named: list[set[str]] = []
    fsync, rename = os.fsync, Path.rename

    def record_sync(descriptor: int) -> None:
        synced.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def record_rename(path: Path, target: Path) -> Path:
        files = {str(each) for each in path.rglob("*") if each.is_file()}
        if not target.name.startswith("."):
            named.append(files - synced)
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "rename", record_rename)
    world.prepare()
    assert str(world.root / "job" / ".prepare-1" / "data" / "train" / "tokens.npy") in synced
    assert len(named) >= 2, "the model and the data"
    assert not set().union(*named), "renamed before it was synced"


def test_pattern_that_would_hang_is_reported_before_any_download(world: World, hub: Hub) -> None:
    rewards = [{"type": "regex", "pattern": "(a+)+$"}]
    failure = world.fails(objective="GRPO", grpo={"rewards": rewards})
    assert failure.reason == "BadPattern"
    assert hub.fetched == []
