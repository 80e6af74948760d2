"""Rows in the layouts of public data sets: everything in them is used, refused or listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_trainer.data.read_records import read_dataset
from finetune_trainer.data.row_errors import RowError, RowErrors
from finetune_trainer.data.samples import MessagesSample, PreferenceSample
from finetune_trainer.runtime.errors import UserError

from tests.trainer.rows import job, json_lines, read, read_failure, role_content, write_file

USER, ASSISTANT = {"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}
PAIR = {"prompt": "p", "completion": "c"}
RULES = {"rewards": [{"type": "length"}]}


def read_one(folder: Path, row: dict[str, Any], **fields: Any) -> Any:
    (sample,) = read(folder, "a.jsonl", json_lines(row), **fields)
    return sample


@pytest.mark.parametrize(
    "call",
    [
        {"name": "f", "args": {"a": 1}},
        {"name": "f", "input": {"a": 1}},
        {"function": {"name": "f", "kwargs": {"a": 1}}},
        {"function": {"name": "f"}, "arguments": {"a": 1}},
        {"name": "f", "arguments": None, "parameters": '{"a": 1}'},
        {"name": "f", "arguments": {"a": 1}, "input": '{"a": 1}'},
    ],
)
def test_arguments_are_read_under_every_usual_key(tmp_path: Path, call: dict[str, Any]) -> None:
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    sample = read_one(tmp_path, {"messages": [USER, turn]})
    assert sample.turns[-1].tool_calls[0]["function"] == {"name": "f", "arguments": {"a": 1}}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"name": "f", "thought": "hm"}, "'thought'"),
        ({"name": "f", "arguments": {"a": 1}, "input": {"a": 2}}, "under two keys"),
    ],
)
def test_a_call_with_a_key_that_cannot_be_used_is_refused(
    tmp_path: Path, call: dict[str, Any], words: str
) -> None:
    turn = {"from": "function_call", "value": json.dumps(call)}
    content = json_lines({"conversations": [{"from": "human", "value": "p"}, turn]})
    failure = read_failure(tmp_path, "a.jsonl", content)
    assert (failure.reason, words in failure.message) == ("BadTools", True)


def test_calls_in_turns_of_their_own_are_one_turn(tmp_path: Path) -> None:
    calls = [
        {"role": "tool_call", "content": json.dumps({"name": name, "arguments": {}})}
        for name in ("f", "g")
    ]
    results = [{"role": "tool_response", "content": text} for text in ("1", "2")]
    sample = read_one(tmp_path, {"messages": [USER, *calls, *results, ASSISTANT]})
    assert [turn.role for turn in sample.turns] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]
    assert [call["function"]["name"] for call in sample.turns[1].tool_calls] == ["f", "g"]


def test_a_call_of_another_name_stays_a_turn_of_its_own(tmp_path: Path) -> None:
    calls = [{"role": "assistant", "tool_calls": [{"name": "f"}], "name": name} for name in "ab"]
    sample = read_one(tmp_path, {"messages": [USER, *calls]})
    assert [turn.name for turn in sample.turns] == [None, "a", "b"]


@pytest.mark.parametrize(
    "tool",
    [
        {"name": "f", "input_schema": {"type": "object", "properties": {"a": {"type": "string"}}}},
        {"name": "f", "parameters": {"a": {"type": "string"}}},
        {"name": "f", "parameters": json.dumps({"a": {"type": "string"}})},
    ],
    ids=["anthropic", "flat", "text"],
)
def test_parameters_of_tools_become_a_schema(tmp_path: Path, tool: dict[str, Any]) -> None:
    sample = read_one(tmp_path, {"messages": [USER, ASSISTANT], "tools": [tool]})
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert sample.context.tools[0]["function"] == {"name": "f", "parameters": schema}


@pytest.mark.parametrize("name", ["system_prompt", "system_message"])
def test_other_names_of_the_system_prompt_are_read(tmp_path: Path, name: str) -> None:
    sample = read_one(tmp_path, {name: "s", "messages": [USER, ASSISTANT]})
    assert role_content(sample.turns)[0] == ("system", "s")


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "p", "question": "q", "output": "c"},
        {"prompt": "p", "output": "c", "answer": "d"},
        {"instruction": "p", "input": "a", "context": "b", "output": "c"},
        {"messages": [USER, ASSISTANT], "conversations": [USER, {**ASSISTANT, "content": "d"}]},
        {"messages": [USER, ASSISTANT], "tools": [{"name": "f"}], "functions": [{"name": "g"}]},
        {**PAIR, "reasoning": "a", "thinking": "b"},
        {**PAIR, "reasoning": "off"},
        {**PAIR, "loss_mask": [0, 1]},
        {**PAIR, "label": "False"},
        {**PAIR, "image_path": "a.png"},
    ],
)
def test_two_columns_for_one_thing_or_a_column_of_another_kind_is_refused(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    failure = read_failure(tmp_path, "a.jsonl", json_lines(row))
    assert (failure.reason, failure.line) == ("UnusableColumn", 1)


@pytest.mark.parametrize("row", [{**PAIR, "question": "p"}, {**PAIR, "weight": "1"}])
def test_columns_with_the_same_content_are_not_a_contradiction(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    assert role_content(read_one(tmp_path, row).turns) == [("user", "p"), ("assistant", "c")]


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "from": "human", "content": "c"},
        {"role": "assistant", "content": "c", "value": "d"},
        {"role": "tool", "name": "f", "output": "72"},
        {**ASSISTANT, "masked": True},
        {**ASSISTANT, "reasoning_details": [{"text": "hm"}]},
        {"role": "assistant", "content": "<image>\nA dog."},
        {"role": "assistant", "content": [{"type": ["text"], "text": "c"}]},
        {
            "role": "assistant",
            "tool_calls": [{"name": "f", "arguments": '{"a": 1, "a": 2}'}],
        },
    ],
)
def test_a_turn_with_a_part_that_cannot_be_used_is_refused(
    tmp_path: Path, turn: dict[str, Any]
) -> None:
    content = json_lines(
        {"messages": [USER, turn, *([ASSISTANT] if turn["role"] == "tool" else [])]}
    )
    assert read_failure(tmp_path, "a.jsonl", content).line == 1


def test_keys_of_parts_are_listed(tmp_path: Path) -> None:
    part = {"type": "text", "text": "c", "cache_control": {"type": "ephemeral"}}
    row = {"messages": [USER, {"role": "assistant", "content": [part]}]}
    found = read_dataset([[write_file(tmp_path, "a.jsonl", json_lines(row))]], None, job())
    assert found.ignored_columns == ("messages[].content[].cache_control",)


def test_keys_of_what_a_tool_returned_are_used(tmp_path: Path) -> None:
    call = {"role": "assistant", "tool_calls": [{"name": "f"}]}
    row = {"messages": [USER, call, {"role": "tool", "content": [{"a": 1}, "b"]}, ASSISTANT]}
    found = read_dataset([[write_file(tmp_path, "a.jsonl", json_lines(row))]], None, job())
    assert found.ignored_columns == ()
    assert found.train[0].turns[2].content == '[{"a": 1}, "b"]'


@pytest.mark.parametrize("as_text", [False, True])
def test_prompts_and_completions_can_be_conversations(tmp_path: Path, as_text: bool) -> None:
    prompt, completion = [{"role": "system", "content": "s"}, USER], [ASSISTANT]
    write = json.dumps if as_text else list
    sample = read_one(tmp_path, {"prompt": write(prompt), "completion": write(completion)})
    assert isinstance(sample, MessagesSample)
    assert role_content(sample.turns) == [("system", "s"), ("user", "p"), ("assistant", "c")]
    assert sample.prompt_turns == 2


def test_answers_that_look_like_turns_stay_texts(tmp_path: Path) -> None:
    row = {"prompt": '{"from": "Berlin"}', "completion": '{"role": "admin"}'}
    sample = read_one(tmp_path, row)
    assert role_content(sample.turns) == [("user", row["prompt"]), ("assistant", row["completion"])]


def test_an_empty_instruction_leaves_the_input(tmp_path: Path) -> None:
    sample = read_one(tmp_path, {"instruction": "", "input": "p", "output": "c"})
    assert role_content(sample.turns) == [("user", "p"), ("assistant", "c")]


CONVERSATIONS = {"chosen": [USER, ASSISTANT], "rejected": [USER, {**ASSISTANT, "content": "d"}]}


@pytest.mark.parametrize(
    "prompt", ["p", [{"role": "system", "content": "s"}, USER], [USER], "other"]
)
def test_a_prompt_next_to_two_conversations_is_used_or_refused(tmp_path: Path, prompt: Any) -> None:
    content = json_lines({**CONVERSATIONS, "prompt": prompt})
    if prompt == "other":
        failure = read_failure(tmp_path, "a.jsonl", content, objective="DPO")
        assert failure.reason == "BadConversation"
        return
    (sample,) = read(tmp_path, "a.jsonl", content, objective="DPO")
    assert isinstance(sample, PreferenceSample)
    assert (sample.prompt[0].role == "system") == (len(prompt) == 2 and prompt != "p")


def test_an_answer_of_weight_0_is_not_a_reference(tmp_path: Path) -> None:
    turns = [USER, {**ASSISTANT, "weight": 0}]
    sample = read_one(tmp_path, {"messages": turns}, objective="GRPO", grpo=RULES)
    assert sample.reference is None


@pytest.mark.parametrize(("reference", "is_read"), [("#### 1,234", True), ("twelve", False)])
def test_a_reference_without_a_number_is_refused_where_numbers_are_compared(
    tmp_path: Path, reference: str, is_read: bool
) -> None:
    content = json_lines({"prompt": "p", "answer": reference})
    fields: dict[str, Any] = {"objective": "GRPO", "grpo": {"rewards": [{"type": "numeric"}]}}
    if is_read:
        assert read(tmp_path, "a.jsonl", content, **fields)[0].reference == reference
    else:
        failure = read_failure(tmp_path, "a.jsonl", content, **fields)
        assert (failure.reason, failure.line) == ("ReferenceMissing", 1)


def test_a_broken_pair_counts_once(tmp_path: Path) -> None:
    errors = RowErrors()
    for _ in range(2):
        errors.skip(RowError("BadConversation", "no", "Fix it."), "a.jsonl", 3)
    assert len(errors.skipped) == 1


UNLEARNT = {"messages": [USER, ASSISTANT, USER, {**ASSISTANT, "weight": 0}]}
PREFERENCE = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("row", "fields", "words"),
    [
        ({"chat_template": "low"}, {}, "'chat_template'"),
        ({"enable_thinking": "low"}, {}, "'enable_thinking'"),
        ({"reasoning_effort": "low"}, {}, "'reasoning_effort'"),
        ({**PREFERENCE, "margin": 0.5}, {"objective": "Reward"}, "'margin'"),
        # One column for two things.
        ({"a": "p"}, {"columns": {"prompt": "a", "completion": "a"}}, "names 'a' as"),
        ({"a": "p"}, {"columns": {"prompt": "a", "input": "a"}}, "names 'a' as"),
        # Another prompt than that of the conversation.
        (
            {**PREFERENCE, "conversations": [{**USER, "content": "other"}]},
            {"objective": "DPO"},
            "'prompt' and 'conversations'",
        ),
    ],
)
def test_a_column_that_cannot_be_used_is_named(
    tmp_path: Path, row: dict[str, Any], fields: dict[str, Any], words: str
) -> None:
    row = row if "chosen" in row else {**PAIR, **row}
    failure = read_failure(tmp_path, "a.jsonl", json_lines(row), **fields)
    assert (failure.reason, words in failure.message) == ("UnusableColumn", True)


def test_a_margin_is_left_out_by_name_and_where_no_objective_means_it(tmp_path: Path) -> None:
    content = json_lines({**PREFERENCE, "margin": 0.5})
    assert read(tmp_path, "a.jsonl", content, objective="Reward", ignoreColumns=["margin"])
    assert read(tmp_path, "a.jsonl", content, objective="DPO")


def test_an_error_in_a_conversation_next_to_the_prompt_names_its_column(tmp_path: Path) -> None:
    content = json_lines({**PREFERENCE, "conversations": " "})
    failure = read_failure(tmp_path, "a.jsonl", content, objective="DPO")
    assert (failure.reason, "'conversations'" in failure.message) == ("EmptyText", True)


def test_a_label_does_not_move_to_an_answer_before_one_of_weight_0(tmp_path: Path) -> None:
    content = json_lines({**UNLEARNT, "label": False})
    failure = read_failure(tmp_path, "a.jsonl", content, objective="KTO")
    assert (failure.reason, "weight 0" in failure.message) == ("BadConversation", True)


def test_prompts_before_an_answer_of_weight_0_are_learnt_or_refused(tmp_path: Path) -> None:
    file = write_file(tmp_path, "a.jsonl", json_lines(UNLEARNT))
    assert len(read_dataset([[file]], None, job()).train[0].turns) == 2
    spec = job().to_wire() | {"sft": {"lossOn": "All"}}
    with pytest.raises(UserError, match="weight 0"):
        read_dataset([[file]], None, FineTuneJobSpec.model_validate(spec))


def test_calls_and_reasoning_that_are_no_reference_are_listed(tmp_path: Path) -> None:
    answer = {
        **ASSISTANT,
        "content": None,
        "reasoning": "r",
        "tool_calls": [{"function": {"name": "f"}}],
    }
    file = write_file(tmp_path, "a.jsonl", json_lines({"messages": [USER, answer]}))
    found = read_dataset([[file]], None, job("GRPO", RULES))
    assert found.ignored_columns == ("messages[-1].reasoning", "messages[-1].tool_calls")


@pytest.mark.parametrize(
    ("tool", "expected"),
    [
        ({"type": "function", "name": "f", "strict": True}, {"function": {"strict": True}}),
        ({"type": "custom", "name": "f", "input_schema": None}, {"function": {}}),
        ({"type": "function", "function": {"name": "f"}, "strict": True}, {"strict": True}),
        ({"function": {"name": "f", "type": "x"}, "strict": None}, {"function": {"type": "x"}}),
    ],
)
def test_no_setting_of_a_tool_is_lost(
    tmp_path: Path, tool: dict[str, Any], expected: dict[str, Any]
) -> None:
    sample = read_one(tmp_path, {"messages": [USER, ASSISTANT], "tools": [tool]})
    function = {"name": "f", **expected.pop("function", {})}
    assert sample.context.tools == ({"type": "function", "function": function, **expected},)


@pytest.mark.parametrize("name", ["type", "required", "properties", "anyOf"])
def test_a_parameter_may_have_the_name_of_a_keyword(tmp_path: Path, name: str) -> None:
    flat = {name: {"type": "str", "description": "d"}, "limit": {"type": "int"}}
    tool = {"name": "f", "parameters": flat}
    sample = read_one(tmp_path, {"messages": [USER, ASSISTANT], "tools": json.dumps([tool])})
    schema = sample.context.tools[0]["function"]["parameters"]
    assert schema == {"type": "object", "properties": flat}


@pytest.mark.parametrize(
    "schema",
    [{"properties": {"a": {"type": "string"}}}, {"type": "object"}, {"properties": {}}, {}],
)
def test_a_schema_stays_as_it_is(tmp_path: Path, schema: dict[str, Any]) -> None:
    tool = {"name": "f", "parameters": schema}
    sample = read_one(tmp_path, {"messages": [USER, ASSISTANT], "tools": [tool]})
    assert sample.context.tools[0]["function"]["parameters"] == schema


def test_parts_may_leave_out_that_they_are_text(tmp_path: Path) -> None:
    turns = [{**USER, "content": [{"text": "a"}, {"text": "b"}]}, ASSISTANT]
    assert read_one(tmp_path, {"messages": turns}).turns[0].content == "ab"


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ({"content": [{"type": "text", "text": "a", "image": {"path": "a.png"}}]}, "not text"),
        ({"content": [{"image": {"format": "png"}}]}, "not text"),
        ({"content": "<video>\nWhat happens?"}, "<video>"),
        ({"content": "Who speaks? <audio>"}, "<audio>"),
        ({"parts": [{"text": "a"}]}, "'parts'"),
    ],
)
def test_media_and_keys_of_other_services_are_refused(
    tmp_path: Path, turn: dict[str, Any], words: str
) -> None:
    failure = read_failure(
        tmp_path, "a.jsonl", json_lines({"messages": [{"role": "user", **turn}, ASSISTANT]})
    )
    assert (failure.reason, words in failure.message) == ("BadConversation", True)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("channel", "analysis", "reasoning_content"),
        ("channel", "commentary", "reasoning_content"),
        ("recipient", "functions.f", "tool_calls"),
        ("channel", "final", ""),
        ("channel", "email", ""),
        ("recipient", "all", ""),
        ("recipient", "customer", ""),
    ],
)
def test_what_harmony_does_not_show_the_user_is_no_answer(
    tmp_path: Path, key: str, value: str, words: str
) -> None:
    content = json_lines({"messages": [USER, {**ASSISTANT, key: value}, ASSISTANT]})
    if not words:
        assert len(read(tmp_path, "a.jsonl", content)[0].turns) == 3
        return
    failure = read_failure(tmp_path, "a.jsonl", content)
    assert (failure.reason, words in str(failure.remedy)) == ("BadConversation", True)


QUESTION, ANSWER = [USER], [ASSISTANT]


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize(
    ("objective", "row", "name"),
    [
        ("SFT", {"instruction": QUESTION, "output": ANSWER, "input": "x"}, "input"),
        ("SFT", {"instruction": QUESTION, "output": "c", "input": "x"}, "input"),
        ("SFT", {"prompt": QUESTION, "completion": ANSWER, "reasoning": "r"}, "reasoning"),
        ("SFT", {"prompt": "p", "completion": ANSWER, "history": [["a", "b"]]}, "history"),
        ("DPO", {"instruction": QUESTION, "chosen": "c", "rejected": "d", "input": "x"}, "input"),
        ("KTO", {"instruction": QUESTION, "output": "c", "label": 1, "input": "x"}, "input"),
        ("GRPO", {"instruction": QUESTION, "input": "x"}, "input"),
    ],
)
def test_columns_of_texts_are_not_lost_next_to_turns(
    tmp_path: Path, objective: str, row: dict[str, Any], name: str, as_text: bool
) -> None:
    fields: dict[str, Any] = {"objective": objective}
    fields |= {"grpo": RULES} if objective == "GRPO" else {}
    if as_text:
        columns = ("instruction", "prompt", "output", "completion")
        row = {
            key: json.dumps(each) if key in columns and isinstance(each, list) else each
            for key, each in row.items()
        }
    failure = read_failure(tmp_path, "a.jsonl", json_lines(row), **fields)
    assert (failure.reason, f"'{name}'" in failure.message) == ("UnusableColumn", True)
    empty = [] if name == "history" else ""
    assert read(tmp_path, "a.jsonl", json_lines({**row, name: empty}), **fields)


@pytest.mark.parametrize("prompt", ["p", [USER]])
def test_a_conversation_that_begins_with_the_prompt_of_a_preference_is_listed(
    tmp_path: Path, prompt: Any
) -> None:
    row = {**PREFERENCE, "prompt": prompt, "messages": [USER, ASSISTANT]}
    file = write_file(tmp_path, "a.jsonl", json_lines(row))
    assert read_dataset([[file]], None, job("DPO")).ignored_columns == ("messages",)


@pytest.mark.parametrize(
    "text",
    [
        "<video><source src='a.mp4'></video>",
        "<audio></audio> is valid; <image> is no element of HTML.",
    ],
)
def test_html_is_no_placeholder(tmp_path: Path, text: str) -> None:
    turns = [USER, {**ASSISTANT, "content": text}]
    assert read_one(tmp_path, {"messages": turns}).turns[1].content == turns[1]["content"]
