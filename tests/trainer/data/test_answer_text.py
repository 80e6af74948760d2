"""Where an answer ends, and what of a message its text must hold."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_trainer.data.answer_text import (
    TurnEnds,
    complete_answer,
    find_missing_part,
    find_omitted_turn,
)

ENDS = TurnEnds.of(("<|end|>", "</s>"), ["<|end|>", "</s>", "<|call|>", "<|endoftext|>", "</tool>"])
CALL = {"content": None, "tool_calls": [{"function": {"name": "weather", "arguments": {}}}]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one<|end|>\n", "one<|end|>"),
        ("one<|end|>\n<|endoftext|>", "one<|end|>"),
        ("one  <|end|>", "one  <|end|>"),
        ("<|end|> is a token<|end|>", "<|end|> is a token<|end|>"),
        ("<tool>f</tool><|end|>\n", "<tool>f</tool><|end|>"),
        ("f()<|call|> \n", "f()<|call|>"),
        ("one\n", "one\n"),
        ("", ""),
    ],
)
def test_an_answer_is_cut_after_the_end_of_its_turn(text: str, expected: str) -> None:
    assert ENDS.cut(text) == expected


@pytest.mark.parametrize(
    ("answer", "message", "expected"),
    [
        ("one", {"content": "one "}, None),
        ("on", {"content": "one"}, "the text"),
        ("one", {"content": "<think>a</think>one"}, "the thought"),
        (
            "<think>\n\n</think><think>a</think>one",
            {"content": "<think>a</think>one"},
            "the thought",
        ),
        ("[THINK]a[/THINK]one", {"content": "one", "reasoning_content": "a"}, None),
        ("one", {"content": "one", "reasoning_content": "a"}, "the reasoning"),
        ('{"name": "weather"}', CALL, None),
        ("", CALL, "the tool call weather"),
    ],
)
def test_what_an_answer_lacks_is_named(
    answer: str, message: dict[str, Any], expected: str | None
) -> None:
    assert find_missing_part(answer, message) == expected


def test_a_tool_call_or_a_result_that_is_left_out_is_an_omitted_turn() -> None:
    result = {"role": "tool", "content": 'it is "3" degrees'}
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", **CALL}, result]
    assert find_omitted_turn('q weather it is\n"3" degrees', messages) is None
    assert find_omitted_turn('q weather "it is \\"3\\" degrees"', messages) is None
    assert find_omitted_turn('q it is "3" degrees', messages) == 2
    assert find_omitted_turn("q weather", messages) == 3


def test_a_call_after_an_opened_thought_is_completed_with_an_empty_one() -> None:
    rendered = "U:q A:<think></think>\nweather()<|end|>\n"
    assert complete_answer("U:q A:<think>\n", rendered, CALL, ENDS) == (
        "\n</think>\n\nweather()<|end|>"
    )


def test_a_header_before_the_answer_is_not_replaced_by_a_thought() -> None:
    message = {"content": "<think>a</think>one"}
    assert complete_answer("U:q A", "U:q A:final one<|end|>", message, ENDS) is None
    assert complete_answer("U:q A:", "U:q A:one<|end|>", message, ENDS) == (
        "<think>\na\n</think>\n\none<|end|>"
    )
