"""Rows that cannot be used, and rows that are too long: as the job has it, and counted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.trainer.prepare_world import World, chat_rows, facts_of, stores

BROKEN = {"messages": [{"role": "user", "content": "no answer"}]}


def long_row(words: int) -> dict[str, Any]:
    turns = chat_rows(1)[0]["messages"]
    return {"messages": [turns[0], {**turns[1], "content": "word " * words}]}


def test_invalid_rows_end_the_job_by_default_and_the_message_names_the_option(
    world: World,
) -> None:
    world.rows("rows.jsonl", [*chat_rows(50), BROKEN])
    failure = world.fails()
    assert (failure.reason, failure.line) == ("BadConversation", 51)
    assert "dataset.invalidRows" in (failure.remedy or "")


def test_invalid_rows_are_left_out_and_counted(world: World) -> None:
    path = world.rows("rows.jsonl", [BROKEN, *chat_rows(98), {"messages": 3}])
    path.write_text(path.read_text() + '{"messages": [\n' + json.dumps(BROKEN) + "\n")
    result = world.prepare(dataset={"invalidRows": {"policy": "Skip", "max": "4%"}})
    facts = facts_of(result)
    assert facts.train_examples + facts.eval_examples == 98
    found = {each.reason: (each.rows, each.first.split(":")[0]) for each in facts.skipped or []}
    assert found == {
        "BadConversation": (2, "Line 1 of rows.jsonl"),
        "WrongType": (1, "Line 100 of rows.jsonl"),
        "BrokenRow": (1, "Line 101 of rows.jsonl"),
    }
    assert world.manifest()["skipped"]["WrongType"]["examples"][0]["line"] == 100


def test_more_invalid_rows_than_the_job_allows_end_it(world: World) -> None:
    world.rows("rows.jsonl", [*chat_rows(97), BROKEN, BROKEN, BROKEN])
    failure = world.fails(dataset={"invalidRows": {"policy": "Skip", "max": "2%"}})
    assert (failure.reason, failure.line) == ("TooManyInvalidRows", 98)
    assert "3 of 100 rows" in failure.message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", 'prompt,completion\n{rows}p,"c'),
        ("rows.json", '[{{"prompt": "p", "completion": "c"}}, {{"prompt": "p"'),
        ("rows.jsonl", '[{{"prompt": "p", "completion": "c"}}]'),
        ("rows.parquet", "PAR1 and then nothing"),
    ],
)
def test_an_error_that_hides_the_rows_after_it_is_never_skipped(
    world: World, name: str, content: str
) -> None:
    rows = "".join(f"p{number},c\n" for number in range(50))
    (world.root / "pvc" / "data" / name).write_text(content.format(rows=rows))
    source = {"train": [{"uri": f"pvc://data/{name}"}]}
    failure = world.fails(dataset={**source, "invalidRows": {"policy": "Skip", "max": "90%"}})
    assert (failure.reason, failure.file) == ("BrokenRow", name)


def test_a_file_of_invalid_rows_only_ends_the_job(world: World) -> None:
    world.rows("rows.jsonl", [BROKEN])
    failure = world.fails(dataset={"invalidRows": {"policy": "Skip", "max": "99%"}})
    assert (failure.reason, failure.line) == ("BadConversation", 1)


@pytest.mark.parametrize("rule", ["Fail", "Skip", "Truncate", None])
def test_long_rows_are_treated_as_the_job_says(world: World, rule: str | None) -> None:
    world.rows("rows.jsonl", [*chat_rows(20), long_row(100), long_row(101)])
    dataset = {"longRows": rule} if rule else {}
    if rule == "Fail":
        failure = world.fails(dataset=dataset, training={"maxSequenceLength": 64})
        assert (failure.reason, failure.line in (21, 22)) == ("RowTooLong", True)
        return
    facts = facts_of(world.prepare(dataset=dataset, training={"maxSequenceLength": 64}))
    kept = facts.train_examples + facts.eval_examples
    if rule == "Skip":
        assert (kept, facts.truncated_examples) == (20, 0)
        assert [(each.reason, each.rows) for each in facts.skipped or []] == [("RowTooLong", 2)]
    else:
        assert (kept, facts.truncated_examples, facts.skipped) == (22, 2, None)


def test_a_prompt_without_room_for_an_answer_can_be_left_out(world: World) -> None:
    turns = chat_rows(1)[0]["messages"]
    row = {"messages": [{**turns[0], "content": "word " * 100}, turns[1]]}
    world.rows("rows.jsonl", [*chat_rows(20), row])
    settings = {"training": {"maxSequenceLength": 64}}
    assert world.fails(**settings).reason == "PromptTooLong"
    facts = facts_of(world.prepare(dataset={"longRows": "Skip"}, **settings))
    assert [(each.reason, each.rows) for each in facts.skipped or []] == [("PromptTooLong", 1)]


@pytest.mark.parametrize("rule", [None, "Split", "Truncate"])
def test_a_long_text_continues_unless_the_job_cuts_it(world: World, rule: str | None) -> None:
    world.rows("rows.jsonl", [{"text": "word " * 100}, *({"text": f"t{i}"} for i in range(20))])
    facts = facts_of(
        world.prepare(
            objective="Completion",
            training={"maxSequenceLength": 64, "packing": False},
            dataset={"longRows": rule} if rule else {},
        )
    )
    lengths = [n for store in stores(world) for n in store.sequence_lengths.tolist() if n > 16]
    assert (lengths == [64]) == (rule == "Truncate")
    assert facts.truncated_examples == (rule == "Truncate")
    assert facts.longest_example > 100


def test_columns_that_nobody_uses_are_named_once(world: World) -> None:
    rows = [{**row, "id": i, "lang": None} for i, row in enumerate(chat_rows(20))]
    rows[7]["messages"] = [{**turn, "date": "today"} for turn in rows[7]["messages"]]
    world.rows("rows.jsonl", rows)
    assert facts_of(world.prepare()).ignored_columns == ["id", "messages[].date"]
