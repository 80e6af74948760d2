"""The columns of a row as turns, and the order of turns that can be learnt from.

Messages are a column of turns (see turns). A prompt with a completion is two texts, with Alpaca's
input after the instruction, its history before it, and a system prompt or reasoning in columns of
their own. Every function raises RowError in words of the file; the caller adds file and line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from finetune_trainer.data.row_errors import RowError
from finetune_trainer.data.tool_calls import parse_json_text
from finetune_trainer.data.turns import (
    Turn,
    Turns,
    check_one_thought,
    check_placeholder,
    looks_like_turns,
    parse_turns,
    refuse_python,
    require_nonblank,
    require_text,
)

_ENDS_REMEDY = "End every conversation with the assistant's answer; that is what is learnt."


def read_instruction(prompt: Any, name: str, extra: Any) -> str:
    """The text of the prompt column, with Alpaca's input after it."""
    text = require_text(prompt, name)
    check_placeholder(text, f"the column {name!r}")
    if extra not in (None, ""):
        more = require_text(extra, "input")
        text = f"{text}\n\n{more}" if text.strip() else more
    return require_nonblank(text, f"the column {name!r}")


def read_history(value: Any, name: str) -> Turns:
    """The earlier turns of Alpaca's history, pairs of a prompt and an answer."""
    pairs = parse_json_text(value) or []
    if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        raise RowError(
            "WrongType",
            f"the column {name!r} is not a list of prompts and answers",
            'Write it as [["prompt", "answer"], ...].',
        )
    return tuple(
        Turn(role, require_nonblank(require_text(text, name), f"the column {name!r}"))
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    )


def read_system_turn(value: Any, name: str) -> Turns:
    """The system turn of a column that may be empty or missing."""
    text = require_text(value, name) if value not in (None, "") else ""
    return (Turn("system", text),) if text.strip() else ()


def add_system_turn(turns: Sequence[Turn], system: Turns) -> Turns:
    """The turns after `system`; RowError where they begin with another system turn."""
    if not system or not turns or turns[0].role != "system":
        return (*system, *turns)
    if turns[0].content.strip() != system[0].content.strip():
        raise RowError(
            "BadConversation",
            "the system prompt of its column differs from that of the conversation",
            "Keep one of the two.",
        )
    return tuple(turns)


def check_prompt(turns: Sequence[Turn], system: Turns = ()) -> Turns:
    """The turns after `system`; they must end with the user or with the result of a tool."""
    if not turns:
        raise RowError(
            "BadConversation", "the conversation has no user turn", "Add the user's turn."
        )
    turns = add_system_turn(turns, system)
    if turns[-1].role not in ("user", "tool"):
        raise RowError(
            "BadConversation",
            f"the prompt ends with the {turns[-1].role}",
            "End every prompt with the user's turn.",
        )
    _check_order(turns)
    return turns


def check_completion(turns: Turns, name: str) -> Turns:
    """The same turns; RowError where they do not begin and end with the assistant."""
    if not turns or turns[0].role != "assistant" or turns[-1].role != "assistant":
        raise RowError(
            "BadConversation",
            f"the column {name!r} does not hold an answer of the assistant",
            "Begin and end the answer with the assistant's turn.",
        )
    if not turns[-1].is_learnt:
        raise RowError(
            "BadConversation", "its answer has weight 0", "Remove the weight, or the row."
        )
    return turns


def read_turns(value: Any, name: str, role: str) -> Turns:
    """A conversation, one turn, or a text as a turn of `role`; never empty."""
    refuse_python(value)
    parsed = parse_json_text(value)
    if isinstance(value, str):
        value = parsed if looks_like_turns(parsed) and parsed else value
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        turns = tuple(parse_turns(value))
        if not turns:
            raise RowError(
                "EmptyText", f"the column {name!r} is empty", "Fill it or remove the row."
            )
        return turns
    return (Turn(role, require_nonblank(require_text(value, name), f"the column {name!r}")),)


def check_conversation(turns: Sequence[Turn]) -> Turns:
    """The turns up to the last one that is learnt; RowError where no answer follows a prompt."""
    roles = [turn.role for turn in turns]
    if "assistant" not in roles:
        raise RowError("BadConversation", "the conversation has no assistant turn", _ENDS_REMEDY)
    if roles[-1] != "assistant":
        raise RowError(
            "BadConversation", f"the conversation ends with the {roles[-1]}", _ENDS_REMEDY
        )
    _check_order(turns)
    first_question = roles.index("user")
    learnt = [
        place
        for place, turn in enumerate(turns)
        if turn.role == "assistant" and turn.is_learnt and place > first_question
    ]
    if not learnt:
        raise RowError("NothingToLearn", "all its answers have weight 0", "Remove the row.")
    return tuple(turns[: learnt[-1] + 1])


def with_reasoning(turn: Turn, reasoning: str | None) -> Turn:
    """The turn with the reasoning of a column of its own."""
    if not (reasoning or "").strip():
        return turn
    check_one_thought(turn.content, "the answer")
    return replace(turn, reasoning=reasoning)


def _check_order(turns: Sequence[Turn]) -> None:
    roles = [turn.role for turn in turns]
    if "system" in roles[1:]:
        raise RowError(
            "BadConversation",
            "a system turn is in the middle of the conversation",
            "Put the system turn first.",
        )
    if "user" not in roles:
        raise RowError(
            "BadConversation", "the conversation has no user turn", "Add the user's turn."
        )
    if "tool" in roles:
        _check_results(turns)


def _check_results(turns: Sequence[Turn]) -> None:
    """RowError where a turn is the result of a call that no turn before it makes."""
    open_ids: set[Any] = set()
    before = ""
    for number, turn in enumerate(turns, 1):
        if turn.role == "assistant":
            open_ids = {call["id"] for call in turn.tool_calls if "id" in call}
        if turn.role == "tool":
            is_answer = before in ("assistant", "tool")
            if not is_answer or (open_ids and turn.tool_call_id not in {None, *open_ids}):
                raise RowError(
                    "BadConversation",
                    f"turn {number} is the result of a tool that was not called",
                    "Put it after the assistant's turn that calls the tool, with the same id.",
                )
        before = turn.role
