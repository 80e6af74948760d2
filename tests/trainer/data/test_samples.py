"""Every kind of sample, from the columns in use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.data.read_records import read_dataset, read_samples
from finetune_trainer.data.samples import (
    PreferenceSample,
    PromptOnlySample,
    TextSample,
    UnpairedPreferenceSample,
)
from finetune_trainer.runtime.errors import UserError

from tests.trainer.rows import job, json_lines, read, read_failure, role_content, write_file

GOOD = {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}
PROMPT = {"role": "user", "content": "p"}
SYSTEM = {"role": "system", "content": "s"}
RULES = {"rewards": [{"type": "exactMatch"}]}
FREE = {"rewards": [{"type": "json"}]}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "chosen": "good", "rejected": "bad"},
        {"question": "p", "chosen": "good", "rejected": "bad", "margin": 2},
        {"prompt": [PROMPT], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [PROMPT], "chosen": GOOD, "rejected": BAD},
        {"prompt": "p", "chosen": [PROMPT, GOOD], "rejected": [PROMPT, BAD]},
        {"chosen": [PROMPT, GOOD], "rejected": [PROMPT, BAD]},
        {"chosen": json.dumps([PROMPT, GOOD]), "rejected": json.dumps([PROMPT, BAD])},
        {
            "conversations": [{"from": "human", "value": "p"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
    ],
)
def test_preferences_are_understood(tmp_path: Path, row: dict[str, Any]) -> None:
    (sample,) = read(tmp_path, "a.jsonl", json_lines(row), objective="DPO")
    assert isinstance(sample, PreferenceSample)
    assert role_content(sample.prompt) == [("user", "p")]
    assert role_content(sample.chosen) == [("assistant", "good")]
    assert role_content(sample.rejected) == [("assistant", "bad")]


@pytest.mark.parametrize(
    "row",
    [
        {"system": "s", "prompt": "p", "chosen": "good", "rejected": "bad"},
        {"system": "s ", "prompt": [SYSTEM, PROMPT], "chosen": "good", "rejected": "bad"},
        {"system": "s", "chosen": [PROMPT, GOOD], "rejected": [PROMPT, BAD]},
        {"chosen": [SYSTEM, PROMPT, GOOD], "rejected": [SYSTEM, PROMPT, BAD]},
    ],
)
def test_the_system_turn_of_a_preference_comes_first(tmp_path: Path, row: dict[str, Any]) -> None:
    (sample,) = read(tmp_path, "a.jsonl", json_lines(row), objective="ORPO")
    assert role_content(sample.prompt) == [("system", "s"), ("user", "p")]


def test_the_common_beginning_of_two_conversations_is_the_prompt(tmp_path: Path) -> None:
    begin = [PROMPT, {"role": "assistant", "content": "which?"}, {"role": "user", "content": "q"}]
    row = {"chosen": [*begin, GOOD], "rejected": [*begin, BAD, PROMPT, GOOD]}
    (sample,) = read(tmp_path, "a.jsonl", json_lines(row), objective="Reward")
    assert role_content(sample.prompt) == [("user", "p"), ("assistant", "which?"), ("user", "q")]
    assert role_content(sample.chosen) == [("assistant", "good")]
    assert [turn.content for turn in sample.rejected] == ["bad", "p", "good"]


@pytest.mark.parametrize(
    ("row", "reason", "words"),
    [
        ({"prompt": "p", "chosen": "x", "rejected": "x"}, "EqualAnswers", "same answer"),
        ({"chosen": [PROMPT, GOOD], "rejected": [PROMPT, GOOD]}, "EqualAnswers", "same answer"),
        ({"chosen": [PROMPT, GOOD], "rejected": [SYSTEM, PROMPT, BAD]}, "BadConversation", "begin"),
        ({"chosen": "good", "rejected": "bad"}, "MissingColumn", "no column for the prompt"),
        ({"prompt": "p", "chosen": "good", "rejected": " "}, "EmptyText", "rejected"),
        ({"prompt": "p", "chosen": "good", "rejected": 3}, "WrongType", "a number"),
        ({"prompt": "p", "chosen": "good", "rejected": None}, "MissingColumn", "is empty"),
        ({"prompt": [GOOD], "chosen": "a", "rejected": "b"}, "BadConversation", "ends with the"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "EmptyText", "prompt"),
        ({"prompt": "p", "chosen": [GOOD, PROMPT], "rejected": "b"}, "BadConversation", "chosen"),
    ],
)
def test_a_broken_preference_is_reported_with_its_line(
    tmp_path: Path, row: dict[str, Any], reason: str, words: str
) -> None:
    first = {"prompt": "p", "chosen": "good", "rejected": "bad"}
    first = {name: first[name] for name in row if name in first}
    if len(first) == 2:
        first = {"chosen": [PROMPT, GOOD], "rejected": [PROMPT, BAD]}  # type: ignore[dict-item]
    failure = read_failure(tmp_path, "a.jsonl", json_lines(first, row), objective="DPO")
    assert (failure.reason, failure.file, failure.line) == (reason, "a.jsonl", 2)
    assert words in failure.message


@pytest.mark.parametrize(
    ("row", "desirable"),
    [
        ({"prompt": "p", "completion": "good", "label": True}, True),
        ({"prompt": "p", "completion": "good", "label": False}, False),
        ({"prompt": [PROMPT], "completion": [GOOD], "label": 1}, True),
        ({"prompt": "p", "completion": "good", "label": 0.0}, False),
        ({"prompt": "p", "response": "good", "label": "False"}, False),
        ({"messages": [PROMPT, GOOD], "label": 0}, False),
    ],
)
def test_unpaired_preferences_are_understood(
    tmp_path: Path, row: dict[str, Any], desirable: bool
) -> None:
    (sample,) = read(tmp_path, "a.jsonl", json_lines(row), objective="KTO")
    assert isinstance(sample, UnpairedPreferenceSample)
    assert role_content((*sample.prompt, *sample.completion)) == [
        ("user", "p"),
        ("assistant", "good"),
    ]
    assert sample.is_desirable is desirable


def test_a_label_that_is_not_true_or_false_is_refused(tmp_path: Path) -> None:
    row = {"prompt": "p", "completion": "c", "label": "maybe"}
    failure = read_failure(tmp_path, "a.jsonl", json_lines(row), objective="KTO")
    assert (failure.reason, failure.line) == ("WrongType", 1)
    assert "'maybe'" in failure.message


def test_kto_learns_from_preferences_too(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "good", "rejected": "bad"}
    (sample,) = read(tmp_path, "a.jsonl", json_lines(row), objective="KTO")
    good, bad = sample.unpair()
    assert (role_content(good.completion), good.is_desirable) == ([("assistant", "good")], True)
    assert (role_content(bad.completion), bad.is_desirable) == ([("assistant", "bad")], False)
    assert (good.file, good.line) == ("a.jsonl", 1)


@pytest.mark.parametrize("row", [{"text": "t\n"}, {"content": "t\n", "id": 3}])
def test_texts_are_understood(tmp_path: Path, row: dict[str, Any]) -> None:
    (sample,) = read(tmp_path, "a.jsonl", json_lines(row), objective="Completion")
    assert isinstance(sample, TextSample)
    assert sample.text == "t\n"


@pytest.mark.parametrize(
    ("row", "reference"),
    [
        ({"prompt": "p", "reference": "42"}, "42"),
        ({"prompt": "p", "answer": 42}, "42"),
        ({"prompt": "p", "solution": ["a", 1]}, '["a", 1]'),
        ({"question": "p", "completion": "42", "level": "hard"}, "42"),
        ({"messages": [PROMPT], "answer": "42"}, "42"),
        ({"messages": [PROMPT, {"role": "assistant", "content": "42"}]}, "42"),
        ({"prompt": [PROMPT]}, None),
        ({"instruction": "p", "input": ""}, None),
    ],
)
def test_prompts_are_understood_and_other_columns_are_ignored(
    tmp_path: Path, row: dict[str, Any], reference: str | None
) -> None:
    (sample,) = read(tmp_path, "a.jsonl", json_lines(row), objective="GRPO", grpo=FREE)
    assert isinstance(sample, PromptOnlySample)
    assert role_content(sample.prompt) == [("user", "p")]
    assert sample.reference == reference


def test_a_prompt_without_the_reference_that_a_reward_needs_is_refused(tmp_path: Path) -> None:
    rows = json_lines({"prompt": "p", "answer": "a"}, {"prompt": "q", "answer": None})
    failure = read_failure(tmp_path, "a.jsonl", rows, objective="GRPO", grpo=RULES)
    assert (failure.reason, failure.line) == ("ReferenceMissing", 2)
    assert len(read(tmp_path, "a.jsonl", rows, objective="GRPO", grpo=FREE)) == 2


@pytest.mark.parametrize(
    ("objective", "row", "expected"),
    [
        ("SFT", {"messages": [PROMPT, GOOD], "prompt": "p", "completion": "c"}, "chat"),
        ("SFT", {"prompt": "p", "completion": "c", "text": "t"}, "instruction"),
        ("Completion", {"prompt": "p", "completion": "c", "text": "t"}, "completion"),
        ("DPO", {"prompt": "p", "completion": "c", "chosen": "a", "rejected": "b"}, "preference"),
        ("KTO", {"prompt": "p", "completion": "c", "label": True}, "unpaired"),
        ("KTO", {"prompt": "p", "chosen": "a", "rejected": "b"}, "preference"),
        ("GRPO", {"prompt": "p", "completion": "c", "chosen": "a"}, "prompt"),
    ],
)
def test_the_objective_and_then_the_columns_decide_the_format(
    tmp_path: Path, objective: str, row: dict[str, Any], expected: str
) -> None:
    spec = job(objective, FREE if objective == "GRPO" else None)
    assert read_samples([write_file(tmp_path, "a.jsonl", json_lines(row))], spec)[0] == expected


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
def test_a_missing_column_is_named(
    tmp_path: Path, objective: str, row: dict[str, Any], words: str
) -> None:
    grpo = FREE if objective == "GRPO" else None
    failure = read_failure(tmp_path, "a.jsonl", json_lines(row), objective=objective, grpo=grpo)
    assert (failure.reason, failure.line) == ("MissingColumn", 1)
    assert words in failure.message
    assert f"the columns are: {', '.join(sorted(row))}" in failure.message


@pytest.mark.parametrize(
    ("objective", "columns", "row"),
    [
        ("Completion", {"text": "body"}, {"body": "x", "text": ""}),
        ("DPO", {"chosen": "a", "rejected": "b"}, {"prompt": "p", "a": "x", "b": "y"}),
        ("KTO", {"label": "ok"}, {"prompt": "p", "completion": "c", "ok": True}),
        ("GRPO", {"reference": "gold"}, {"prompt": "p", "gold": "x", "answer": "no"}),
    ],
)
def test_the_columns_that_the_job_names_are_used(
    tmp_path: Path, objective: str, columns: dict[str, str], row: dict[str, Any]
) -> None:
    grpo = RULES if objective == "GRPO" else None
    (sample,) = read(
        tmp_path, "a.jsonl", json_lines(row), objective=objective, grpo=grpo, columns=columns
    )
    assert "no" not in json.dumps(sample.to_json())
    lacking = {name: value for name, value in row.items() if name not in columns.values()}
    failure = read_failure(
        tmp_path, "b.jsonl", json_lines(lacking), objective=objective, grpo=grpo, columns=columns
    )
    assert next(iter(columns.values())) in failure.message


@pytest.mark.parametrize("columns", [{"chosen": "a"}, {"messages": "m", "prompt": "prompt"}])
def test_a_column_that_would_not_be_used_is_refused(
    tmp_path: Path, columns: dict[str, str]
) -> None:
    row = {"prompt": "p", "completion": "c", "a": "x", "m": [PROMPT, GOOD]}
    failure = read_failure(tmp_path, "a.jsonl", json_lines(row), columns=columns)
    assert failure.reason == "UnusedColumn"


@pytest.mark.parametrize("objective", ["SFT", "Completion", "DPO", "KTO", "GRPO"])
def test_an_empty_file_is_refused(tmp_path: Path, objective: str) -> None:
    grpo = FREE if objective == "GRPO" else None
    failure = read_failure(tmp_path, "a.jsonl", "\n", objective=objective, grpo=grpo)
    assert (failure.reason, failure.file) == ("EmptyDataset", "a.jsonl")


def test_every_source_of_a_mixture_has_one_format(tmp_path: Path) -> None:
    chat = write_file(tmp_path, "chat.jsonl", "\n" + json_lines({"messages": [PROMPT, GOOD]}))
    asked = write_file(tmp_path, "asked.jsonl", json_lines({"prompt": "p", "completion": "c"}))
    with pytest.raises(UserError) as caught:
        read_dataset([[asked], [chat]], None, job())
    failure = caught.value.failure
    assert (failure.reason, failure.file, failure.line) == ("MixedFormats", "chat.jsonl", 2)
    with pytest.raises(UserError, match="format chat"):
        read_dataset([[asked]], [chat], job())


def test_sources_may_name_their_columns_differently(tmp_path: Path) -> None:
    one = write_file(tmp_path, "one.jsonl", json_lines({"prompt": "p", "completion": "c"}))
    two = write_file(tmp_path, "two.jsonl", json_lines({"instruction": "q", "output": "d"}))
    samples = read_dataset([[one], [two]], None, job())
    assert [sample.source for sample in samples.train] == [0, 1]
