"""Turns of a conversation, read under each key that data sets use, and checked.

Messages are a column of {role, content} turns (ShareGPT's {from, value} is understood), in columnar
files often as JSON text. A prompt with a completion is two texts, Alpaca's instruction + input
included. Every function raises RowError in words of the file; the caller adds file and line.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_trainer.data.columns import ColumnMapping
from finetune_trainer.data.row_errors import RowError

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
_ENDS_REMEDY = "End every conversation with the assistant's answer; that is what is learnt."


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation."""

    role: str
    """system, user or assistant."""
    content: str


Turns = tuple[Turn, ...]


def to_messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """The turns as chat templates take them."""
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def read_instruction(values: Mapping[str, Any], mapping: ColumnMapping) -> str:
    """The text of the prompt column, with Alpaca's input after it."""
    assert mapping.prompt
    prompt = require_text(require_column(values, mapping.prompt), mapping.prompt)
    extra = values.get(mapping.input) if mapping.input else None
    if mapping.input and extra not in (None, ""):
        prompt = f"{prompt}\n\n{require_text(extra, mapping.input)}"
    return require_nonblank(prompt, f"the column {mapping.prompt!r}")


def read_system_turn(values: Mapping[str, Any], name: str | None) -> Turns:
    """The system turn of a column that may be empty or missing."""
    value = values.get(name) if name else None
    return (Turn("system", require_text(value, name)),) if name and value not in (None, "") else ()


def read_prompt(values: Mapping[str, Any], mapping: ColumnMapping, system: Turns) -> Turns:
    """The turns before the answer: from a text, or a conversation that ends with the user."""
    name = mapping.prompt if mapping.prompt is not None else mapping.messages
    if name is None:
        raise RowError(
            "MissingColumn",
            "the answers begin with the assistant, and there is no column for the prompt",
            "Add a column prompt, or begin both conversations with the user's turn.",
        )
    value = require_column(values, name)
    if mapping.input and isinstance(value, str):
        value = read_instruction(values, mapping)
    return check_prompt(read_turns(value, name, "user"), system)


def check_prompt(turns: Turns, system: Turns = ()) -> Turns:
    """The turns, after `system` where they have no system turn; they must end with the user."""
    if not turns:
        raise RowError("BadConversation", "the assistant is asked nothing", "Add the user's turn.")
    turns = turns if turns[0].role == "system" else (*system, *turns)
    if turns[-1].role != "user":
        raise RowError(
            "BadConversation",
            f"the prompt ends with the {turns[-1].role}",
            "End every prompt with the user's turn.",
        )
    _check_system(turns)
    return turns


def check_completion(turns: Turns, name: str) -> Turns:
    """The same turns; RowError where they do not begin and end with the assistant."""
    if not turns or turns[0].role != "assistant" or turns[-1].role != "assistant":
        raise RowError(
            "BadConversation",
            f"the column {name!r} does not hold an answer of the assistant",
            "Begin and end the answer with the assistant's turn.",
        )
    return turns


def read_turns(value: Any, name: str, role: str) -> Turns:
    """A conversation, one turn, or a text as a turn of `role`; never empty."""
    if isinstance(value, str) and value.lstrip().startswith(("[{", "{")):
        with contextlib.suppress(ValueError):
            parsed = json.loads(value)
            value = parsed if _looks_like_turns(parsed) else value
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        turns = tuple(parse_messages(value))
        if not turns:
            raise RowError(
                "EmptyText", f"the column {name!r} is empty", "Fill it or remove the row."
            )
        return turns
    return (Turn(role, require_nonblank(require_text(value, name), f"the column {name!r}")),)


def _looks_like_turns(value: Any) -> bool:
    turns = value if isinstance(value, list) else [value]
    return all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in turns)


def require_column(values: Mapping[str, Any], name: str) -> Any:
    """The value of a column; RowError where it is missing or null."""
    if values.get(name) is None:
        listed = ", ".join(sorted(str(key) for key in values)) or "none"
        raise RowError(
            "MissingColumn",
            f"the column {name!r} is {'empty' if name in values else 'missing'}; "
            f"the columns are: {listed}",
            "Give every row the same columns, or name others in dataset.columns.",
        )
    return values[name]


def require_text(value: Any, column: str) -> str:
    """A text that can be tokenised; RowError where it is not one."""
    if not isinstance(value, str):
        raise RowError(
            "WrongType",
            f"the column {column!r} holds {_type_name(value)}, not a text",
            "Write texts as strings.",
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(
            "BrokenRow",
            f"the column {column!r} holds half of a surrogate pair",
            "Write characters beyond U+FFFF as themselves or as two \\u escapes.",
        ) from None
    return value


def require_nonblank(text: str, what: str) -> str:
    """The same text; RowError where it is blank."""
    if not text.strip():
        raise RowError("EmptyText", f"{what} is empty", "Fill it or remove the row.")
    return text


def _type_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def parse_messages(value: Any) -> list[Turn]:
    """The turns of a chat column, without empty system turns."""
    # Columnar files and CSV often carry the list as JSON text.
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise RowError(
            "WrongType",
            "the conversation is not a list of turns",
            'Write it as [{"role": "user", "content": "..."}, ...].',
        )
    turns = [_parse_turn(entry, number) for number, entry in enumerate(value, 1)]
    return [turn for turn in turns if turn.role != "system" or turn.content.strip()]


def _parse_turn(entry: dict[str, Any], number: int) -> Turn:
    role = entry.get("role", entry.get("from"))
    if not isinstance(role, str) or role not in ROLES:
        raise RowError(
            "BadConversation",
            f"turn {number} has the role {role!r}",
            "Use the roles system, user and assistant.",
        )
    if entry.get("tool_calls"):
        raise RowError(
            "BadConversation", f"turn {number} calls tools", "Remove conversations with tools."
        )
    content = entry.get("content", entry.get("value"))
    if isinstance(content, list):
        content = _join_parts(content, number)
    text = require_text(content, f"content of turn {number}")
    if ROLES[role] != "system":
        require_nonblank(text, f"turn {number}")
    return Turn(ROLES[role], text)


def _join_parts(parts: list[Any], number: int) -> str:
    texts = [p.get("text") for p in parts if isinstance(p, dict) and p.get("type") == "text"]
    if len(texts) != len(parts):
        raise RowError(
            "BadConversation",
            f"turn {number} has parts that are not text",
            "Use text only.",
        )
    return "".join(require_text(text, f"content of turn {number}") for text in texts)


def check_conversation(turns: list[Turn]) -> Turns:
    """A conversation that ends with an answer to a prompt; RowError where it does not."""
    roles = [turn.role for turn in turns]
    if "assistant" not in roles:
        raise RowError("BadConversation", "the assistant says nothing", _ENDS_REMEDY)
    if roles[-1] != "assistant":
        raise RowError(
            "BadConversation", f"the conversation ends with the {roles[-1]}", _ENDS_REMEDY
        )
    _check_system(turns)
    if len(turns) < 2 or roles[:2] == ["system", "assistant"]:
        raise RowError("BadConversation", "the assistant is asked nothing", "Add the user's turn.")
    return tuple(turns)


def _check_system(turns: Sequence[Turn]) -> None:
    if any(turn.role == "system" for turn in turns[1:]):
        raise RowError(
            "BadConversation",
            "a system turn is in the middle of the conversation",
            "Put the system turn first.",
        )
