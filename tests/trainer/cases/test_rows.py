"""Columns and keys of rows: each is used, refused, or left out by a rule of the job."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from finetune_trainer.data.samples import MessagesSample, PreferenceSample, PromptOnlySample

from tests.trainer.rows import json_lines, read, read_failure, role_content

ASK, ANSWER = {"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}
OTHER = {"role": "assistant", "content": "other"}
SYSTEM = {"role": "system", "content": "s"}
PLAIN = [("user", "p"), ("assistant", "c")]
WITH_SYSTEM = [("system", "s"), *PLAIN]
CHAT = {"messages": [ASK, ANSWER]}
RULES = {"rewards": [{"type": "length"}]}
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}


def call_with(arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"name": "weather", "arguments": arguments}]}


def read_one(folder: Path, row: dict[str, Any], **fields: Any) -> Any:
    (sample,) = read(folder, "a.jsonl", json_lines(row), **fields)
    return sample


@pytest.mark.parametrize(
    ("objective", "row"),
    [
        ("SFT", {"system": "s", **CHAT}),
        ("SFT", {"system": "s", "messages": [SYSTEM, ASK, ANSWER]}),
        ("SFT", {"system": "s", "prompt": "p", "completion": "c"}),
        ("KTO", {"system": "s", "label": True, **CHAT}),
        ("KTO", {"system": "s", "label": True, "prompt": "p", "completion": "c"}),
        ("DPO", {"system": "s", "chosen": [ASK, ANSWER], "rejected": [ASK, OTHER]}),
        ("GRPO", {"system": "s", "messages": [ASK]}),
    ],
)
def test_a_system_column_becomes_the_first_turn(
    tmp_path: Path, objective: str, row: dict[str, Any]
) -> None:
    if objective == "DPO":
        row = {**row, "rejected": [ASK, {**ANSWER, "content": "other"}]}
    sample = read_one(
        tmp_path, row, objective=objective, grpo=RULES if objective == "GRPO" else None
    )
    first = (sample.turns if isinstance(sample, MessagesSample) else sample.prompt)[0]
    assert (first.role, first.content) == ("system", "s")


def test_a_system_column_that_contradicts_the_conversation_is_refused(tmp_path: Path) -> None:
    row = {"system": "other", "messages": [SYSTEM, ASK, ANSWER]}
    failure = read_failure(tmp_path, "a.jsonl", json_lines(row))
    assert (failure.reason, failure.line) == ("BadConversation", 1)


def test_optional_columns_are_looked_for_in_every_row(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Say hello.", "output": "hello"},
        {"instruction": "Translate.", "input": "Hund", "output": "dog"},
        {"instruction": "Translate.", "context": "Katze", "output": "cat", "system": "Be brief."},
        {"instruction": "And?", "output": "yes", "history": [["Is it?", "It is."]]},
    ]
    samples = read(tmp_path, "a.jsonl", json_lines(*rows))
    assert [role_content(sample.turns) for sample in samples] == [
        [("user", "Say hello."), ("assistant", "hello")],
        [("user", "Translate.\n\nHund"), ("assistant", "dog")],
        [("system", "Be brief."), ("user", "Translate.\n\nKatze"), ("assistant", "cat")],
        [
            ("user", "Is it?"),
            ("assistant", "It is."),
            ("user", "And?"),
            ("assistant", "yes"),
        ],
    ]


def test_a_reference_may_have_another_name_in_a_later_row(tmp_path: Path) -> None:
    rows = [{"prompt": "1+1", "answer": "2"}, {"prompt": "2+2", "answer": None, "solution": 4}]
    grpo = {"rewards": [{"type": "exactMatch"}]}
    samples = read(tmp_path, "a.jsonl", json_lines(*rows), objective="GRPO", grpo=grpo)
    assert [sample.reference for sample in samples] == ["2", "4"]


def test_a_named_column_that_no_row_has_is_refused(tmp_path: Path) -> None:
    row = {"prompt": "p", "completion": "c"}
    failure = read_failure(tmp_path, "a.jsonl", json_lines(row), columns={"system": "persona"})
    assert (failure.reason, failure.file) == ("MissingColumn", "a.jsonl")
    assert "'persona'" in failure.message


@pytest.mark.parametrize("key", ["weight", "train", "loss"])
def test_turns_of_weight_0_are_context(tmp_path: Path, key: str) -> None:
    turns = [ASK, {**ANSWER, key: 0}, ASK, {**ANSWER, key: 1}, ASK, {**ANSWER, key: 0}]
    sample = read_one(tmp_path, {"messages": turns})
    assert [turn.is_learnt for turn in sample.turns] == [True, False, True, True]
    assert sample.to_json()["reference"] == "c"


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ({**ANSWER, "weight": 0.5}, "weight 0.5"),
        ({**ANSWER, "weight": 0}, "weight 0"),
        ({**ANSWER, "train": "yes"}, "train 'yes'"),
        ({**ANSWER, "audio": {"data": "AAAA"}}, "'audio'"),
        ({**ANSWER, "train_detail": [{"begin_offset": 0, "train": False}]}, "'train_detail'"),
        ({**ANSWER, "refusal": "No."}, "'refusal'"),
        ({**ANSWER, "reasoning": "a", "thinking": "b"}, "two different reasonings"),
        ({**ANSWER, "content": "<think>a</think>c", "reasoning": "a"}, "</think>"),
        ({**ANSWER, "content": [{"type": "tool_use", "name": "f"}]}, "not text"),
        ({**ANSWER, "content": None}, "null"),
    ],
)
def test_a_key_of_a_turn_that_cannot_be_used_is_refused(
    tmp_path: Path, turn: dict[str, Any], words: str
) -> None:
    content = json_lines(CHAT, {"messages": [ASK, turn]})
    failure = read_failure(tmp_path, "a.jsonl", content)
    assert failure.line == 2
    assert words in failure.message


@pytest.mark.parametrize("roles", ["ac", "sac", "tac", "uatua", "utac", "ua?"])
def test_turns_in_an_impossible_order_are_refused(tmp_path: Path, roles: str) -> None:
    names = {"a": "assistant", "s": "system", "t": "tool", "u": "user", "c": "assistant", "?": "x"}
    turns = [{"role": names[role], "content": role} for role in roles]
    if roles == "uatua":
        turns[1]["tool_calls"], turns[2]["tool_call_id"] = [{"id": "1", **CALL}], "2"
    failure = read_failure(tmp_path, "a.jsonl", json_lines(CHAT, {"messages": turns}))
    assert (failure.reason, failure.line) == ("BadConversation", 2)


@pytest.mark.parametrize(
    "turn",
    [
        {**ANSWER, "reasoning_content": "because"},
        {**ANSWER, "thinking": "because"},
        {**ANSWER, "reasoning": "because", "reasoning_content": "because"},
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "because"}, {"type": "text", "text": "c"}],
        },
    ],
)
def test_reasoning_is_read_from_a_key_of_its_own(tmp_path: Path, turn: dict[str, Any]) -> None:
    sample = read_one(tmp_path, {"messages": [ASK, turn]})
    assert (sample.turns[-1].content, sample.turns[-1].reasoning) == ("c", "because")


def test_reasoning_is_read_from_a_column(tmp_path: Path) -> None:
    sample = read_one(tmp_path, {"prompt": "p", "reasoning": "because", "completion": "c"})
    assert sample.turns[-1].reasoning == "because"


def test_reasoning_of_a_column_and_in_the_answer_is_refused(tmp_path: Path) -> None:
    row = {"prompt": "p", "reasoning": "a", "completion": "<think>a</think>c"}
    failure = read_failure(tmp_path, "a.jsonl", json_lines(row))
    assert (failure.reason, failure.line) == ("BadConversation", 1)
    assert read_one(tmp_path, {**row, "reasoning": " "}).turns[-1].reasoning is None


OPENAI = [
    ASK,
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", **CALL}]},
    {"role": "tool", "tool_call_id": "1", "content": "12"},
    ANSWER,
]
OLD_OPENAI = [
    ASK,
    {"role": "assistant", "function_call": {"name": "weather", "arguments": '{"city": "Köln"}'}},
    {"role": "function", "name": "weather", "content": "12"},
    ANSWER,
]
SHAREGPT = [
    {"from": "human", "value": "p"},
    {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Köln"}}'},
    {"from": "observation", "value": "12"},
    {"from": "gpt", "value": "c"},
]


@pytest.mark.parametrize("turns", [OPENAI, OLD_OPENAI, SHAREGPT], ids=["new", "old", "sharegpt"])
@pytest.mark.parametrize(
    "tools",
    [
        [{"type": "function", "function": WEATHER}],
        [WEATHER],
        [json.dumps(WEATHER)],
        json.dumps([WEATHER]),
        WEATHER,
    ],
    ids=["openai", "bare", "texts", "text", "one"],
)
def test_tools_and_calls_are_read_in_every_usual_form(
    tmp_path: Path, turns: list[Any], tools: Any
) -> None:
    sample = read_one(tmp_path, {"conversations": turns, "tools": tools})
    assert role_content(sample.turns) == [*PLAIN[:1], ("assistant", ""), ("tool", "12"), PLAIN[1]]
    (call,) = sample.turns[1].tool_calls
    assert {key: call[key] for key in ("type", "function")} == CALL
    assert sample.context.tools == ({"type": "function", "function": WEATHER},)
    assert sample.to_json()["tools"] == [{"type": "function", "function": WEATHER}]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tools": [{"parameters": {}}]}, "BadTools"),
        ({"tools": "get_weather(city)"}, "BadTools"),
        ({"conversations": [*SHAREGPT[:1], {"from": "function_call", "value": "{}"}]}, "BadTools"),
        ({"conversations": [*SHAREGPT[:1], {"from": "function_call", "value": "x"}]}, "BadTools"),
        (
            {
                "conversations": [
                    ASK,
                    {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
                ]
            },
            "BadTools",
        ),
        ({"documents": ["a text"]}, "WrongType"),
        ({"documents": {"text": "x"}}, "WrongType"),
        ({"documents": '{"text": "x"}'}, "WrongType"),
        ({"documents": {}}, "WrongType"),
        ({"tools": [{"name": "weather", "description": "\ud800"}]}, "BrokenRow"),
        # JSON texts inside a list and inside a call are parsed too.
        ({"tools": ['{"name": "weather", "description": "\\ud800"}']}, "BrokenRow"),
        ({"tools": [{"name": "f", "parameters": '{"a": {"enum": ["\\ud800"]}}'}]}, "BrokenRow"),
        ({"conversations": [ASK, call_with(r'{"city": "\ud800"}')]}, "BrokenRow"),
        ({"conversations": [ASK, call_with(0)]}, "BadTools"),
        ({"conversations": [ASK, call_with(False)]}, "BadTools"),
    ],
)
def test_tools_that_cannot_be_read_are_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    row = {"conversations": SHAREGPT, "tools": [WEATHER]}
    failure = read_failure(tmp_path, "a.jsonl", json_lines(row, {**row, **changes}))
    assert (failure.reason, failure.line) == (reason, 2)


def test_nulls_that_a_columnar_file_adds_are_not_arguments(tmp_path: Path) -> None:
    other = {"type": "function", "function": {"name": "time", "arguments": {"zone": "UTC"}}}
    calls = [{"role": "assistant", "content": None, "tool_calls": [each]} for each in (CALL, other)]
    rows = [{"messages": [ASK, each]} for each in calls]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    samples = read(tmp_path, "a.parquet", content)
    found = [sample.turns[-1].tool_calls[0]["function"]["arguments"] for sample in samples]
    assert found == [{"city": "Köln"}, {"zone": "UTC"}]


@pytest.mark.parametrize(
    ("objective", "column"),
    [
        ("SFT", {"images": ["a.png"]}),
        ("SFT", {"image": {"bytes": "AAAA"}}),
        ("SFT", {"weight": 0.2}),
        ("SFT", {"chat_template_kwargs": {"enable_thinking": False}}),
        ("SFT", {"context": "It rains."}),
        ("SFT", {"label": False}),
        ("DPO", {"videos": ["a.mp4"]}),
        ("DPO", {"thinking": "because"}),
        ("KTO", {"history": [["a", "b"]]}),
        ("Completion", {"audio": "a.wav"}),
    ],
)
def test_a_column_that_cannot_be_used_is_refused_until_the_job_ignores_it(
    tmp_path: Path, objective: str, column: dict[str, Any]
) -> None:
    plain = {
        "SFT": {"prompt": "p", "completion": "c"},
        "DPO": {"prompt": "p", "chosen": "a", "rejected": "b"},
        "KTO": {"prompt": "p", "completion": "c", "label": True},
        "Completion": {"text": "t"},
    }[objective]
    (name,) = column
    content = json_lines(plain, {**plain, name: None}, {**plain, **column})
    failure = read_failure(tmp_path, "a.jsonl", content, objective=objective)
    assert (failure.reason, failure.line) == ("UnusableColumn", 3)
    assert repr(name) in failure.message
    assert "dataset.ignoreColumns" in (failure.remedy or "")
    samples = read(tmp_path, "a.jsonl", content, objective=objective, ignoreColumns=[name])
    assert len(samples) == 3


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "chosen": "good", "rejected": "bad", "tools": [WEATHER]},
        {"prompt": [ASK], "chosen": [OPENAI[1]], "rejected": [ANSWER], "tools": [WEATHER]},
    ],
)
def test_preferences_keep_their_tools(tmp_path: Path, row: dict[str, Any]) -> None:
    sample = read_one(tmp_path, row, objective="DPO")
    assert isinstance(sample, PreferenceSample)
    assert sample.context.tools[0]["function"] == WEATHER


def test_tools_are_refused_with_a_reward_model(tmp_path: Path) -> None:
    row = {"prompt": "p", "tools": [WEATHER]}
    sample = read_one(tmp_path, row, objective="GRPO", grpo=RULES)
    assert isinstance(sample, PromptOnlySample)
    assert sample.context.tools
    reward = {"rewardModel": {"uri": "hf://acme/reward"}}
    failure = read_failure(tmp_path, "a.jsonl", json_lines(row), objective="GRPO", grpo=reward)
    assert failure.reason == "UnusableColumn"


def test_rows_that_differ_in_a_key_are_not_duplicates(tmp_path: Path) -> None:
    rows = [
        CHAT,
        {**CHAT, "tools": [WEATHER]},
        {"messages": [ASK, {**ANSWER, "reasoning": "because"}]},
        {"messages": [ASK, {**ANSWER, "weight": 0}, ASK, ANSWER]},
        {"messages": [ASK, ANSWER, ASK, ANSWER]},
    ]
    keys = {sample.key for sample in read(tmp_path, "a.jsonl", json_lines(*rows))}
    assert len(keys) == len(rows)


def test_a_date_in_a_reference_is_an_error_of_the_row(tmp_path: Path) -> None:
    row = {"prompt": "p", "answer": [datetime(2026, 1, 2, tzinfo=UTC)]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    failure = read_failure(tmp_path, "a.parquet", content, objective="GRPO", grpo=RULES)
    assert (failure.reason, failure.line) == ("WrongType", 1)


def test_a_value_that_is_nested_too_deeply_is_an_error_of_the_row(tmp_path: Path) -> None:
    deep = f'{{"prompt": "p", "completion": "c", "metadata": {"[" * 700}{"]" * 700}}}'
    content = json_lines({"prompt": "p", "completion": "c"}) + deep
    failure = read_failure(tmp_path, "a.jsonl", content)
    assert (failure.reason, failure.line) == ("BrokenRow", 2)
