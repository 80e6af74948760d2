"""Rows that cannot be used, and rows that are too long: as the job has it, and counted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data.chat_template import ChatTokenizer
from finetune_trainer.data.pipeline import long_rows_rule, tokenize_samples
from finetune_trainer.data.read_records import DatasetSamples, read_dataset
from finetune_trainer.data.row_errors import RowErrors
from finetune_trainer.data.tokenize import SampleTokenizer, SampleTokens
from finetune_trainer.data.tokenizer import load_tokenizer
from finetune_trainer.runtime.errors import UserError

from tests.trainer.prepare_world import World, chat_rows, facts_of
from tests.trainer.rows import job, json_lines, write_file

BROKEN = {"messages": [{"role": "user", "content": "no answer"}]}
SKIP = {"policy": "Skip", "max": "2%"}
LENGTH = 64


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    return load_tokenizer(tiny_model_folder)


def read(folder: Path, content: str, name: str = "rows.jsonl", **fields: Any) -> DatasetSamples:
    return read_dataset([[write_file(folder, name, content)]], None, job(**fields))


def read_failure(folder: Path, content: str, name: str = "rows.jsonl", **fields: Any) -> Any:
    with pytest.raises(UserError) as caught:
        read(folder, content, name, **fields)
    return caught.value.failure


def tokenize(
    tokenizer: Any, folder: Path, rows: Sequence[dict[str, Any]], **fields: Any
) -> tuple[list[SampleTokens], RowErrors]:
    samples = read(folder, json_lines(*rows), **fields).train
    chat = ChatTokenizer(tokenizer, LENGTH, 512)
    errors = RowErrors()
    rule = long_rows_rule(job(**fields))
    found = tokenize_samples(
        samples, SampleTokenizer(tokenizer, chat, LENGTH, 0), rule, errors, lambda done: None
    )
    return found, errors


def with_content(number: int, text: str) -> dict[str, Any]:
    """A row whose turn `number` has another content."""
    turns = chat_rows(1)[0]["messages"]
    turns[number]["content"] = text
    return {"messages": turns}


def test_invalid_rows_end_the_job_by_default_and_the_message_names_the_option(
    tmp_path: Path,
) -> None:
    failure = read_failure(tmp_path, json_lines(*chat_rows(50), BROKEN))
    assert (failure.reason, failure.line) == ("BadConversation", 51)
    assert "dataset.invalidRows" in failure.remedy


def test_rows_that_are_left_out_and_columns_that_are_not_used_are_in_the_status(
    world: World,
) -> None:
    rows = [{**row, "id": i, "lang": None} for i, row in enumerate(chat_rows(97))]
    rows[7]["messages"] = [{**turn, "date": "today"} for turn in rows[7]["messages"]]
    long = with_content(1, "word " * 200)
    path = world.rows("rows.jsonl", [BROKEN, *rows, long, {"messages": 3}])
    path.write_text(path.read_text() + '{"messages": [\n' + json.dumps(BROKEN) + "\n")
    facts = facts_of(
        world.prepare(dataset={"invalidRows": {"policy": "Skip", "max": "4%"}, "longRows": "Skip"})
    )
    assert facts.train_examples + facts.eval_examples == 97
    found = {each.reason: (each.rows, each.first.split(":")[0]) for each in facts.skipped or []}
    assert found == {
        "BadConversation": (2, "Line 1 of rows.jsonl"),
        "RowTooLong": (1, "Line 99 of rows.jsonl"),
        "WrongType": (1, "Line 100 of rows.jsonl"),
        "BrokenRow": (1, "Line 101 of rows.jsonl"),
    }
    assert world.manifest()["skipped"]["WrongType"]["examples"][0]["line"] == 100
    assert facts.ignored_columns == ["id", "messages[].date"]


def test_more_invalid_rows_than_the_job_allows_end_it(tmp_path: Path) -> None:
    content = json_lines(*chat_rows(97), BROKEN, BROKEN, BROKEN)
    failure = read_failure(tmp_path, content, invalidRows=SKIP)
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
    tmp_path: Path, name: str, content: str
) -> None:
    content = content.format(rows="".join(f"p{number},c\n" for number in range(50)))
    policy = {"policy": "Skip", "max": "90%"}
    failure = read_failure(tmp_path, content, name, invalidRows=policy)
    assert (failure.reason, failure.file) == ("BrokenRow", name)


def test_a_file_of_invalid_rows_only_ends_the_job(tmp_path: Path) -> None:
    policy = {"policy": "Skip", "max": "99%"}
    failure = read_failure(tmp_path, json_lines(BROKEN), invalidRows=policy)
    assert (failure.reason, failure.line) == ("BadConversation", 1)


LONG = [*chat_rows(20), with_content(1, "word " * 100), with_content(1, "word " * 101)]


@pytest.mark.parametrize("rule", ["Truncate", None])
def test_long_rows_are_cut_by_default(tokenizer: Any, tmp_path: Path, rule: str | None) -> None:
    found, errors = tokenize(tokenizer, tmp_path, LONG, **({"longRows": rule} if rule else {}))
    assert (len(found), sum(each.is_truncated for each in found)) == (22, 2)
    assert not errors.skipped


def test_long_rows_can_be_left_out_or_end_the_job(tokenizer: Any, tmp_path: Path) -> None:
    found, errors = tokenize(tokenizer, tmp_path, LONG, longRows="Skip")
    assert (len(found), any(each.is_truncated for each in found)) == (20, False)
    assert [(row.reason, row.line) for row in errors.skipped] == [
        ("RowTooLong", 21),
        ("RowTooLong", 22),
    ]
    with pytest.raises(UserError) as caught:
        tokenize(tokenizer, tmp_path, LONG, longRows="Fail")
    assert (caught.value.failure.reason, caught.value.failure.line) == ("RowTooLong", 21)


def test_a_prompt_without_room_for_an_answer_can_be_left_out(
    tokenizer: Any, tmp_path: Path
) -> None:
    rows = [*chat_rows(20), with_content(0, "word " * 100)]
    with pytest.raises(UserError) as caught:
        tokenize(tokenizer, tmp_path, rows)
    assert caught.value.failure.reason == "PromptTooLong"
    _, errors = tokenize(tokenizer, tmp_path, rows, longRows="Skip")
    assert [(row.reason, row.line) for row in errors.skipped] == [("PromptTooLong", 21)]


@pytest.mark.parametrize("rule", [None, "Split", "Truncate"])
def test_a_long_text_continues_unless_the_job_cuts_it(
    tokenizer: Any, tmp_path: Path, rule: str | None
) -> None:
    rows = [{"text": "word " * 100}, *({"text": f"t{i}"} for i in range(20))]
    rules = {"longRows": rule} if rule else {}
    found, _ = tokenize(tokenizer, tmp_path, rows, objective="Completion", **rules)
    lengths = [len(part.tokens) for part in found[0].tokenized]
    assert (lengths == [LENGTH]) == (rule == "Truncate")
    assert [each.is_truncated for each in found] == [rule == "Truncate", *[False] * 20]
    assert found[0].full_length > 100
