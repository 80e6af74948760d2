"""Turns: what is said, by whom, in the spellings that people use.

Chat: a column of {role, content} turns (ShareGPT's {from, value} is understood), in columnar files
often as JSON text. Instruction: a prompt and an answer, Alpaca's instruction + input included.
Every fault is a BadRow in words of the file, and whoever knows the line adds it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from abc import ABC, abstractmethod
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

    def to_dict(self) -> dict[str, str]:
        """As chat templates want it."""
        return {"role": self.role, "content": self.content}


Turns = tuple[Turn, ...]


def plain(turns: Sequence[Turn]) -> list[list[str]]:
    """Roles and texts, as the key of a row is made from them."""
    return [[turn.role, turn.content] for turn in turns]


def dicts(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """The turns as chat templates want them."""
    return [turn.to_dict() for turn in turns]


@dataclass(frozen=True, kw_only=True)
class Sample(ABC):
    """A row of the data, whatever its format."""

    file: str = ""
    line: int = 0
    source: int = 0
    """Index of its source in dataset.train."""

    @property
    @abstractmethod
    def content(self) -> Any:
        """What it says, as JSON, without where it stands."""

    @abstractmethod
    def shown(self) -> dict[str, Any]:
        """Its line of eval.jsonl."""

    @property
    def key(self) -> bytes:
        """SHA-256 of the content alone: equal rows have equal keys, wherever they stand."""
        return hashlib.sha256(json.dumps(self.content).encode()).digest()


@dataclass(frozen=True)
class MessagesSample(Sample):
    """A row that can be learnt from; ends with the assistant's turn."""

    turns: Turns
    asked: int = 0
    """Turns at the beginning of which nothing is learnt, whoever speaks."""

    @property
    def content(self) -> Any:
        """What it says."""
        return plain(self.turns)

    def shown(self) -> dict[str, Any]:
        """The prompt of the last answer, and that answer."""
        return {"messages": dicts(self.turns[:-1]), "reference": self.turns[-1].content}


def conversation_of(prompt: Turns, answer: Turns) -> MessagesSample:
    """A prompt with an answer of which alone is learnt; BadRow where they do not go together."""
    return MessagesSample(checked([*prompt, *answer]), asked=len(prompt))


def instruction_prompt(values: Mapping[str, Any], layout: ColumnMapping) -> str:
    """What is asked in the prompt column, with Alpaca's input after it."""
    assert layout.prompt
    prompt = text_of(column(values, layout.prompt), layout.prompt)
    extra = values.get(layout.input) if layout.input else None
    if layout.input and extra not in (None, ""):
        prompt = f"{prompt}\n\n{text_of(extra, layout.input)}"
    return filled(prompt, f"the column {layout.prompt!r}")


def system_turn(values: Mapping[str, Any], name: str | None) -> Turns:
    """The system turn of a column that may be empty or not be there."""
    value = values.get(name) if name else None
    return (Turn("system", text_of(value, name)),) if name and value not in (None, "") else ()


def prompt_turns(values: Mapping[str, Any], layout: ColumnMapping, system: Turns) -> Turns:
    """The turns before the answer: a text, or a conversation that ends with the user."""
    name = layout.prompt if layout.prompt is not None else layout.messages
    if name is None:
        raise RowError(
            "MissingColumn",
            "the answers begin with the assistant, and there is no column for the prompt",
            "Add a column prompt, or begin both conversations with the user's turn.",
        )
    value = column(values, name)
    if layout.input and isinstance(value, str):
        value = instruction_prompt(values, layout)
    return checked_prompt(turns_or_text(value, name, "user"), system)


def checked_prompt(turns: Turns, system: Turns = ()) -> Turns:
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


def answer_turns(turns: Turns, name: str) -> Turns:
    """The same turns; BadRow where they do not begin and end with the assistant."""
    if not turns or turns[0].role != "assistant" or turns[-1].role != "assistant":
        raise RowError(
            "BadConversation",
            f"the column {name!r} does not hold an answer of the assistant",
            "Begin and end the answer with the assistant's turn.",
        )
    return turns


def turns_or_text(value: Any, name: str, role: str) -> Turns:
    """A conversation, one turn, or a text that `role` says; never empty."""
    if isinstance(value, str) and value.lstrip().startswith(("[{", "{")):
        with contextlib.suppress(ValueError):
            parsed = json.loads(value)
            value = parsed if _like_turns(parsed) else value
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        turns = tuple(chat_turns(value))
        if not turns:
            raise RowError(
                "EmptyText", f"the column {name!r} is empty", "Fill it or remove the row."
            )
        return turns
    return (Turn(role, filled(text_of(value, name), f"the column {name!r}")),)


def _like_turns(value: Any) -> bool:
    turns = value if isinstance(value, list) else [value]
    return all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in turns)


def column(values: Mapping[str, Any], name: str) -> Any:
    """What a column holds; BadRow where it holds nothing."""
    if values.get(name) is None:
        listed = ", ".join(sorted(str(key) for key in values)) or "none"
        raise RowError(
            "MissingColumn",
            f"the column {name!r} is {'empty' if name in values else 'missing'}; "
            f"the columns are: {listed}",
            "Give every row the same columns, or name others in dataset.columns.",
        )
    return values[name]


def text_of(value: Any, column: str) -> str:
    """A text that can be tokenised; BadRow where it is none."""
    if not isinstance(value, str):
        raise RowError(
            "WrongType",
            f"the column {column!r} holds {_kind(value)}, not a text",
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


def filled(text: str, what: str) -> str:
    """The same text; BadRow where it is blank."""
    if not text.strip():
        raise RowError("EmptyText", f"{what} is empty", "Fill it or remove the row.")
    return text


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def chat_turns(value: Any) -> list[Turn]:
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
    turns = [_turn(entry, number) for number, entry in enumerate(value, 1)]
    return [turn for turn in turns if turn.role != "system" or turn.content.strip()]


def _turn(entry: dict[str, Any], number: int) -> Turn:
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
        content = _joined_parts(content, number)
    text = text_of(content, f"content of turn {number}")
    if ROLES[role] != "system":
        filled(text, f"turn {number}")
    return Turn(ROLES[role], text)


def _joined_parts(parts: list[Any], number: int) -> str:
    texts = [p.get("text") for p in parts if isinstance(p, dict) and p.get("type") == "text"]
    if len(texts) != len(parts):
        raise RowError(
            "BadConversation",
            f"turn {number} has parts that are not text",
            "Use text only.",
        )
    return "".join(text_of(text, f"content of turn {number}") for text in texts)


def checked(turns: list[Turn]) -> Turns:
    """A conversation that ends with an answer to something; BadRow where it does not."""
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
            "a system turn stands in the middle",
            "Put the system turn first.",
        )
