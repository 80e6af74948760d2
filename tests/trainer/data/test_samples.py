"""Texts, pairs, rated answers and prompts, in the spellings that people use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data.read_records import read_all, read_units
from finetune_trainer.data.samples import (
    PreferenceSample,
    PromptOnlySample,
    TextSample,
    UnpairedPreferenceSample,
)
from finetune_trainer.runtime.errors import UserError

from tests.trainer.rows import fault, job, lines, put, read, talk

GOOD = {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}
ASKED = {"role": "user", "content": "p"}
SYSTEM = {"role": "system", "content": "s"}
RULES = {"rewards": [{"type": "exactMatch"}]}
FREE = {"rewards": [{"type": "json"}]}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "chosen": "good", "rejected": "bad"},
        {"question": "p", "chosen": "good", "rejected": "bad", "margin": 2},
        {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [ASKED], "chosen": GOOD, "rejected": BAD},
        {"prompt": "p", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        {"chosen": json.dumps([ASKED, GOOD]), "rejected": json.dumps([ASKED, BAD])},
        {
            "conversations": [{"from": "human", "value": "p"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
    ],
)
def test_pairs_are_understood(tmp_path: Path, row: dict[str, Any]) -> None:
    (pair,) = read(tmp_path, "a.jsonl", lines(row), objective="DPO")
    assert isinstance(pair, PreferenceSample)
    assert talk(pair.prompt) == [("user", "p")]
    assert talk(pair.chosen) == [("assistant", "good")]
    assert talk(pair.rejected) == [("assistant", "bad")]


@pytest.mark.parametrize(
    "row",
    [
        {"system": "s", "prompt": "p", "chosen": "good", "rejected": "bad"},
        {"system": "no", "prompt": [SYSTEM, ASKED], "chosen": "good", "rejected": "bad"},
        {"system": "s", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        {"chosen": [SYSTEM, ASKED, GOOD], "rejected": [SYSTEM, ASKED, BAD]},
    ],
)
def test_system_prompt_of_a_pair_comes_first(tmp_path: Path, row: dict[str, Any]) -> None:
    (pair,) = read(tmp_path, "a.jsonl", lines(row), objective="ORPO")
    assert talk(pair.prompt) == [("system", "s"), ("user", "p")]


def test_common_beginning_of_two_conversations_is_the_prompt(tmp_path: Path) -> None:
    begin = [ASKED, {"role": "assistant", "content": "which?"}, {"role": "user", "content": "q"}]
    row = {"chosen": [*begin, GOOD], "rejected": [*begin, BAD, ASKED, GOOD]}
    (pair,) = read(tmp_path, "a.jsonl", lines(row), objective="Reward")
    assert talk(pair.prompt) == [("user", "p"), ("assistant", "which?"), ("user", "q")]
    assert talk(pair.chosen) == [("assistant", "good")]
    assert [turn.content for turn in pair.rejected] == ["bad", "p", "good"]


@pytest.mark.parametrize(
    ("row", "reason", "words"),
    [
        ({"prompt": "p", "chosen": "x", "rejected": "x"}, "EqualAnswers", "same answer"),
        ({"chosen": [ASKED, GOOD], "rejected": [ASKED, GOOD]}, "EqualAnswers", "same answer"),
        ({"chosen": [ASKED, GOOD], "rejected": [SYSTEM, ASKED, BAD]}, "BadConversation", "begin"),
        ({"chosen": "good", "rejected": "bad"}, "MissingColumn", "no column for the prompt"),
        ({"prompt": "p", "chosen": "good", "rejected": " "}, "EmptyText", "rejected"),
        ({"prompt": "p", "chosen": "good", "rejected": 3}, "WrongType", "a number"),
        ({"prompt": "p", "chosen": "good", "rejected": None}, "MissingColumn", "is empty"),
        ({"prompt": [GOOD], "chosen": "a", "rejected": "b"}, "BadConversation", "ends with the"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "EmptyText", "prompt"),
        ({"prompt": "p", "chosen": [GOOD, ASKED], "rejected": "b"}, "BadConversation", "chosen"),
    ],
)
def test_faulty_pairs_are_told_with_their_line(
    tmp_path: Path, row: dict[str, Any], reason: str, words: str
) -> None:
    first = {"prompt": "p", "chosen": "good", "rejected": "bad"}
    first = {name: first[name] for name in row if name in first}
    if len(first) == 2:
        first = {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}  # type: ignore[dict-item]
    told = fault(tmp_path, "a.jsonl", lines(first, row), objective="DPO")
    assert (told.reason, told.file, told.line) == (reason, "a.jsonl", 2)
    assert words in told.message


@pytest.mark.parametrize(
    ("row", "desirable"),
    [
        ({"prompt": "p", "completion": "good", "label": True}, True),
        ({"prompt": "p", "completion": "good", "label": False}, False),
        ({"prompt": [ASKED], "completion": [GOOD], "label": 1}, True),
        ({"prompt": "p", "completion": "good", "label": 0.0}, False),
        ({"prompt": "p", "response": "good", "label": "False"}, False),
        ({"messages": [ASKED, GOOD], "label": 0}, False),
    ],
)
def test_rated_answers_are_understood(tmp_path: Path, row: dict[str, Any], desirable: bool) -> None:
    (rated,) = read(tmp_path, "a.jsonl", lines(row), objective="KTO")
    assert isinstance(rated, UnpairedPreferenceSample)
    assert talk((*rated.prompt, *rated.answer)) == [("user", "p"), ("assistant", "good")]
    assert rated.desirable is desirable


def test_label_that_is_no_verdict_is_told(tmp_path: Path) -> None:
    row = {"prompt": "p", "completion": "c", "label": "maybe"}
    told = fault(tmp_path, "a.jsonl", lines(row), objective="KTO")
    assert (told.reason, told.line) == ("WrongType", 1)
    assert "'maybe'" in told.message


def test_kto_learns_from_pairs_too(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "good", "rejected": "bad"}
    (pair,) = read(tmp_path, "a.jsonl", lines(row), objective="KTO")
    good, bad = pair.rated()
    assert (talk(good.answer), good.desirable) == ([("assistant", "good")], True)
    assert (talk(bad.answer), bad.desirable) == ([("assistant", "bad")], False)
    assert (good.file, good.line) == ("a.jsonl", 1)


@pytest.mark.parametrize("row", [{"text": "t\n"}, {"content": "t\n", "id": 3}])
def test_texts_are_understood(tmp_path: Path, row: dict[str, Any]) -> None:
    (text,) = read(tmp_path, "a.jsonl", lines(row), objective="Completion")
    assert isinstance(text, TextSample)
    assert text.text == "t\n"


@pytest.mark.parametrize(
    ("row", "reference"),
    [
        ({"prompt": "p", "reference": "42"}, "42"),
        ({"prompt": "p", "answer": 42}, "42"),
        ({"prompt": "p", "solution": ["a", 1]}, '["a", 1]'),
        ({"question": "p", "completion": "42", "level": "hard"}, "42"),
        ({"messages": [ASKED], "answer": "42"}, "42"),
        ({"messages": [ASKED, {"role": "assistant", "content": "42"}]}, "42"),
        ({"prompt": [ASKED]}, None),
        ({"instruction": "p", "input": ""}, None),
    ],
)
def test_prompts_are_understood_and_other_columns_ignored(
    tmp_path: Path, row: dict[str, Any], reference: str | None
) -> None:
    (question,) = read(tmp_path, "a.jsonl", lines(row), objective="GRPO", grpo=FREE)
    assert isinstance(question, PromptOnlySample)
    assert talk(question.prompt) == [("user", "p")]
    assert question.reference == reference


def test_prompt_without_the_answer_that_a_reward_needs_is_told(tmp_path: Path) -> None:
    rows = lines({"prompt": "p", "answer": "a"}, {"prompt": "q", "answer": None})
    told = fault(tmp_path, "a.jsonl", rows, objective="GRPO", grpo=RULES)
    assert (told.reason, told.line) == ("ReferenceMissing", 2)
    assert len(read(tmp_path, "a.jsonl", rows, objective="GRPO", grpo=FREE)) == 2


@pytest.mark.parametrize(
    ("objective", "row", "expected"),
    [
        ("SFT", {"messages": [ASKED, GOOD], "prompt": "p", "completion": "c"}, "chat"),
        ("SFT", {"prompt": "p", "completion": "c", "text": "t"}, "instruction"),
        ("Completion", {"prompt": "p", "completion": "c", "text": "t"}, "completion"),
        ("DPO", {"prompt": "p", "completion": "c", "chosen": "a", "rejected": "b"}, "preference"),
        ("KTO", {"prompt": "p", "completion": "c", "label": True}, "unpaired"),
        ("KTO", {"prompt": "p", "chosen": "a", "rejected": "b"}, "preference"),
        ("GRPO", {"prompt": "p", "completion": "c", "chosen": "a"}, "prompt"),
    ],
)
def test_format_follows_from_the_objective_and_then_from_the_columns(
    tmp_path: Path, objective: str, row: dict[str, Any], expected: str
) -> None:
    spec = job(objective, FREE if objective == "GRPO" else None)
    assert read_units([put(tmp_path, "a.jsonl", lines(row))], spec)[0] == expected


@pytest.mark.parametrize(
    ("objective", "row", "words"),
    [
        ("Completion", {"prompt": "p"}, "no column 'text' or 'content'"),
        ("DPO", {"prompt": "p", "completion": "c"}, "no column 'chosen'"),
        ("DPO", {"prompt": "p", "chosen": "c"}, "no column 'rejected'"),
        ("KTO", {"prompt": "p", "completion": "c"}, "no column 'label'"),
        ("GRPO", {"text": "t"}, "no column 'prompt' or 'instruction' or"),
    ],
)
def test_missing_column_is_named(
    tmp_path: Path, objective: str, row: dict[str, Any], words: str
) -> None:
    grpo = FREE if objective == "GRPO" else None
    told = fault(tmp_path, "a.jsonl", lines(row), objective=objective, grpo=grpo)
    assert (told.reason, told.line) == ("MissingColumn", 1)
    assert words in told.message
    assert f"the columns are: {', '.join(sorted(row))}" in told.message


@pytest.mark.parametrize(
    ("objective", "columns", "row"),
    [
        ("Completion", {"text": "body"}, {"body": "x", "text": ""}),
        ("DPO", {"chosen": "a", "rejected": "b"}, {"prompt": "p", "a": "x", "b": "y"}),
        ("KTO", {"label": "ok"}, {"prompt": "p", "completion": "c", "ok": True}),
        ("GRPO", {"reference": "gold"}, {"prompt": "p", "gold": "x", "answer": "no"}),
    ],
)
def test_columns_that_the_job_names_are_used(
    tmp_path: Path, objective: str, columns: dict[str, str], row: dict[str, Any]
) -> None:
    grpo = RULES if objective == "GRPO" else None
    (unit,) = read(tmp_path, "a.jsonl", lines(row), objective=objective, grpo=grpo, columns=columns)
    assert "no" not in json.dumps(unit.shown())
    lacking = {name: value for name, value in row.items() if name not in columns.values()}
    told = fault(
        tmp_path, "b.jsonl", lines(lacking), objective=objective, grpo=grpo, columns=columns
    )
    assert next(iter(columns.values())) in told.message


@pytest.mark.parametrize("columns", [{"chosen": "a"}, {"messages": "m", "prompt": "prompt"}])
def test_column_that_would_not_be_used_is_told(tmp_path: Path, columns: dict[str, str]) -> None:
    row = {"prompt": "p", "completion": "c", "a": "x", "m": [ASKED, GOOD]}
    told = fault(tmp_path, "a.jsonl", lines(row), columns=columns)
    assert told.reason == "UnusedColumn"


@pytest.mark.parametrize("objective", ["SFT", "Completion", "DPO", "KTO", "GRPO"])
def test_empty_file_is_told(tmp_path: Path, objective: str) -> None:
    grpo = FREE if objective == "GRPO" else None
    told = fault(tmp_path, "a.jsonl", "\n", objective=objective, grpo=grpo)
    assert (told.reason, told.file) == ("EmptyDataset", "a.jsonl")


def test_every_source_of_a_mixture_has_one_format(tmp_path: Path) -> None:
    chat = put(tmp_path, "chat.jsonl", "\n" + lines({"messages": [ASKED, GOOD]}))
    asked = put(tmp_path, "asked.jsonl", lines({"prompt": "p", "completion": "c"}))
    with pytest.raises(UserError) as caught:
        read_all([[asked], [chat]], None, job())
    told = caught.value.failure
    assert (told.reason, told.file, told.line) == ("MixedFormats", "chat.jsonl", 2)
    with pytest.raises(UserError, match="format chat"):
        read_all([[asked]], [chat], job())


def test_sources_may_name_their_columns_differently(tmp_path: Path) -> None:
    one = put(tmp_path, "one.jsonl", lines({"prompt": "p", "completion": "c"}))
    two = put(tmp_path, "two.jsonl", lines({"instruction": "q", "output": "d"}))
    rows = read_all([[one], [two]], None, job())
    assert [unit.source for unit in rows.train] == [0, 1]
