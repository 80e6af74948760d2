"""The prepare stage of SFT and Completion: packing, and mixtures of several sources."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data.token_store import IGNORED
from finetune_trainer.data.tokenizer import load_tokenizer

from tests.trainer.families import tiny_falcon
from tests.trainer.prepare_world import (
    END,
    World,
    facts_of,
    held_out,
    stores,
    trained_text,
    use_model,
)
from tests.trainer.servers import Hub
from tests.trainer.tiny import tiny_rows


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


def test_architecture_that_mixes_examples_is_not_packed(
    world: World, hub: Hub, tmp_path: Path
) -> None:
    use_model(hub, tiny_falcon(tmp_path / "model"))
    failure = world.fails(training={"packing": True})
    assert failure.reason == "PackingUnsupported"
    assert "falcon" in failure.message
    assert "out" in (failure.remedy or "")
    assert "model.safetensors" not in hub.fetched
    facts = facts_of(world.prepare())
    assert not facts.packed
    assert facts.train_sequences == facts.train_examples
