"""The end of an answer, and the parts of its turn that it must hold."""

from __future__ import annotations

import pytest
from finetune_trainer.data.answer_text import (
    TurnEnds,
    complete_answer,
    find_missing_part,
    find_unwritten_text,
)
from finetune_trainer.data.turns import Turn

ENDS = TurnEnds.of(("<|end|>", "</s>"), ["<|end|>", "</s>", "<|call|>", "<|endoftext|>", "</tool>"])
THOUGHT = Turn("assistant", "<think>a</think>one")
REASONED = Turn("assistant", "one", reasoning="a")
CALLS = Turn("assistant", "", tool_calls=({"function": {"name": "weather", "arguments": {}}},))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one<|end|>\n", "one<|end|>"),
        ("one<|end|>\n<|endoftext|>", "one<|end|>"),
        ("one  <|end|>", "one  <|end|>"),
        ("<|end|> is a token<|end|>", "<|end|> is a token<|end|>"),
        ("<tool>f</tool><|end|>\n", "<tool>f</tool><|end|>"),
        ("f()<|call|> \n", "f()<|call|>"),
        ("one\n", "one"),
        ("<tool>f</tool>\n", "<tool>f</tool>"),
        ("", ""),
    ],
)
def test_an_answer_is_cut_after_the_end_of_its_turn(text: str, expected: str) -> None:
    assert ENDS.cut(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one<|end|>\nA:", "one<|end|>"),
        ("one<|end|>\nA:\n", "one<|end|>"),
        ("one</s>\n<|end|>\nA:", "one</s>\n<|end|>"),
        ("one<|end|> The end.", "one<|end|>"),
        ("one\nA:", "one\nA:"),
    ],
)
def test_what_the_template_writes_after_the_end_of_the_turn_is_cut(
    text: str, expected: str
) -> None:
    assert ENDS.cut(text) == expected


@pytest.mark.parametrize(
    ("answer", "turn", "expected"),
    [
        ("one", Turn("assistant", "one "), None),
        ("on", Turn("assistant", "one"), "the text"),
        ("one", THOUGHT, "the thought"),
        ("<think>\n\n</think><think>a</think>one", THOUGHT, "the thought"),
        ("[THINK]a[/THINK]one", REASONED, None),
        ("one", REASONED, "the reasoning"),
        ('{"name": "weather"}', CALLS, None),
        ("", CALLS, "the tool call weather"),
    ],
)
def test_the_part_that_an_answer_lacks_is_named(
    answer: str, turn: Turn, expected: str | None
) -> None:
    assert find_missing_part(answer, turn) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('q weather it is\n"3" degrees', None),
        ('q weather "it is \\"3\\" degrees"', None),
        ('q it is "3" degrees', "the calls of turn 2"),
        ("q weather", "the tool's result in turn 3"),
        ('q weather is "3" degrees', "the tool's result in turn 3"),
        ('weather it is "3" degrees', "the text of turn 1"),
    ],
)
def test_a_text_or_a_call_that_is_not_whole_is_named(text: str, expected: str | None) -> None:
    turns = (Turn("user", "q"), CALLS, Turn("tool", 'it is "3" degrees'))
    assert find_unwritten_text(text, turns) == expected


def test_a_call_after_an_opened_thought_is_completed_with_an_empty_one() -> None:
    rendered = "U:q A:<think></think>\nweather()<|end|>\n"
    assert complete_answer("U:q A:<think>\n", rendered, Turn("assistant", ""), ENDS) == (
        "\n</think>\n\nweather()<|end|>"
    )


def test_a_header_before_the_answer_is_not_replaced_by_a_thought() -> None:
    assert complete_answer("U:q A", "U:q A:final one<|end|>", THOUGHT, ENDS) is None
    assert complete_answer("U:q A:", "U:q A:one<|end|>", THOUGHT, ENDS) == (
        "<think>\na\n</think>\n\none<|end|>"
    )


def test_a_thought_that_the_template_closes_at_once_is_not_closed_twice() -> None:
    assert complete_answer("A:<think>", "A:</think>one<|end|>", Turn("assistant", "one"), ENDS) == (
        "</think>one<|end|>"
    )
    assert complete_answer("A:<think>", "A:</think>one<|end|>", REASONED, ENDS) == (
        "a\n</think>\n\none<|end|>"
    )


def test_reasoning_is_completed_as_a_thought_in_the_text_is() -> None:
    expected = "<think>\na\n</think>\n\none<|end|>"
    assert complete_answer("A:", "A:one<|end|>\n", REASONED, ENDS) == expected
    assert complete_answer("A:", "A:<think></think>one<|end|>\n", REASONED, ENDS) == expected
    rendered = "A:<think></think><think>a</think>one<|end|>\n"
    assert complete_answer("A:", rendered, THOUGHT, ENDS) == expected


@pytest.mark.parametrize(
    "thought",
    [
        "<think>\n\n</think>\n\n",
        "</think>",
        "<|channel>thought\n<channel|>",
        "<|START_THINKING|><|END_THINKING|>",
    ],
)
def test_an_answer_follows_an_empty_thought_of_the_prompt(thought: str) -> None:
    answer = Turn("assistant", "one")
    for rendered in ("A:one<|end|>\n", "A:</think>one<|end|>\n"):
        assert complete_answer(f"A:{thought}", rendered, answer, ENDS) == "one<|end|>"
    for turn in (THOUGHT, REASONED):
        assert complete_answer(f"A:{thought}", "A:one<|end|>\n", turn, ENDS) is None
    assert complete_answer(f"B:{thought}", "A:one<|end|>\n", answer, ENDS) is None
