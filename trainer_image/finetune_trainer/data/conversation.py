"""Records in the layouts that people use, turned into one: a list of turns.

Chat: a column of {role, content} turns (ShareGPT's {from, value} is understood). Instruction: a
prompt and a completion, Alpaca's instruction + input + output included. Which columns are meant is
settled once, by the job's `columns` and the first row, and holds for every row.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from finetune_api.finetunejob import Columns

from finetune_trainer.data.bad_rows import BadRow

Format = Literal["chat", "instruction"]
MESSAGES = ("messages", "conversations")
PROMPT = ("prompt", "instruction", "question")
COMPLETION = ("completion", "output", "response", "answer")
SYSTEM = ("system",)
ALPACA_PROMPT, ALPACA_INPUT = "instruction", "input"

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


@dataclass(frozen=True)
class Conversation:
    """A row that can be learnt from; ends with the assistant's turn."""

    turns: tuple[Turn, ...]
    file: str = ""
    line: int = 0

    @property
    def key(self) -> bytes:
        """SHA-256 of the content alone: equal rows have equal keys, wherever they stand."""
        plain = json.dumps([[turn.role, turn.content] for turn in self.turns])
        return hashlib.sha256(plain.encode()).digest()


@dataclass(frozen=True)
class Layout:
    """Which columns hold what."""

    format: Format
    messages: str = ""
    prompt: str = ""
    completion: str = ""
    system: str | None = None
    input: str | None = None


def find_layout(
    wanted: Literal["auto", "chat", "instruction"], columns: Columns, present: Sequence[str]
) -> Layout:
    """The layout of a file whose first row has the columns `present`; BadRow where none fits."""
    if wanted == "auto" and columns.messages:
        wanted = "chat"
    elif wanted == "auto" and (columns.prompt or columns.completion or columns.system):
        wanted = "instruction"
    if columns.system and columns.system not in present:
        raise _no_layout("instruction", Columns(prompt=columns.system), present, None)
    messages = _pick(columns.messages, MESSAGES, present)
    prompt = _pick(columns.prompt, PROMPT, present)
    completion = _pick(columns.completion, COMPLETION, present)
    if wanted != "instruction" and messages:
        return Layout("chat", messages=messages)
    if wanted != "chat" and prompt and completion:
        return Layout(
            "instruction",
            prompt=prompt,
            completion=completion,
            system=columns.system or _pick(None, SYSTEM, present),
            input=ALPACA_INPUT if prompt == ALPACA_PROMPT and not columns.prompt else None,
        )
    raise _no_layout(wanted, columns, present, prompt or completion)


def to_conversation(values: dict[str, Any], layout: Layout) -> tuple[Turn, ...]:
    """The turns of one record; BadRow where something is missing or of the wrong kind."""
    if layout.format == "chat":
        return _checked(_chat_turns(_column(values, layout.messages)))
    prompt = _text(_column(values, layout.prompt), layout.prompt)
    extra = values.get(layout.input) if layout.input else None
    if layout.input and extra not in (None, ""):
        prompt = f"{prompt}\n\n{_text(extra, layout.input)}"
    turns = [
        Turn("user", _filled(prompt, f"the column {layout.prompt!r}")),
        Turn(
            "assistant",
            _filled(
                _text(_column(values, layout.completion), layout.completion),
                f"the column {layout.completion!r}",
            ),
        ),
    ]
    system = values.get(layout.system) if layout.system else None
    if layout.system and system not in (None, ""):
        turns.insert(0, Turn("system", _text(system, layout.system)))
    return tuple(turns)


def _pick(override: str | None, usual: Iterable[str], present: Sequence[str]) -> str | None:
    names = (override,) if override else usual
    return next((name for name in names if name in present), None)


def _no_layout(wanted: str, columns: Columns, present: Sequence[str], half: str | None) -> BadRow:
    listed = ", ".join(sorted(present)) or "none"
    named = [columns.messages] if wanted == "chat" else [columns.prompt, columns.completion]
    if absent := [name for name in named if name and name not in present]:
        missing = f"there is no column {absent[0]!r}"
    elif wanted == "chat":
        missing = "there is no column 'messages' or 'conversations'"
    else:
        missing = "there is no column for the " + ("other half of the pair" if half else "prompt")
    return BadRow(
        "MissingColumn",
        f"{missing}; the columns are: {listed}",
        "Name your columns in dataset.columns, or rename them to prompt and completion, "
        "or to messages.",
    )


def _column(values: dict[str, Any], name: str) -> Any:
    if values.get(name) is None:
        listed = ", ".join(sorted(str(key) for key in values)) or "none"
        raise BadRow(
            "MissingColumn",
            f"the column {name!r} is {'empty' if name in values else 'missing'}; "
            f"the columns are: {listed}",
            "Give every row the same columns, or name others in dataset.columns.",
        )
    return values[name]


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise BadRow(
            "WrongType",
            f"the column {column!r} holds {_kind(value)}, not a text",
            "Write texts as strings.",
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(
            "BrokenRow",
            f"the column {column!r} holds half of a surrogate pair",
            "Write characters beyond U+FFFF as themselves or as two \\u escapes.",
        ) from None
    return value


def _filled(text: str, what: str) -> str:
    if not text.strip():
        raise BadRow("EmptyText", f"{what} is empty", "Fill it or remove the row.")
    return text


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _chat_turns(value: Any) -> list[Turn]:
    # Columnar files and CSV often carry the list as JSON text.
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise BadRow(
            "WrongType",
            "the conversation is not a list of turns",
            'Write it as [{"role": "user", "content": "..."}, ...].',
        )
    turns = [_turn(entry, number) for number, entry in enumerate(value, 1)]
    return [turn for turn in turns if turn.role != "system" or turn.content.strip()]


def _turn(entry: dict[str, Any], number: int) -> Turn:
    role = entry.get("role", entry.get("from"))
    if not isinstance(role, str) or role not in ROLES:
        raise BadRow(
            "BadConversation",
            f"turn {number} has the role {role!r}",
            "Use the roles system, user and assistant.",
        )
    if entry.get("tool_calls"):
        raise BadRow(
            "BadConversation", f"turn {number} calls tools", "Remove conversations with tools."
        )
    content = entry.get("content", entry.get("value"))
    if isinstance(content, list):
        content = _joined_parts(content, number)
    text = _text(content, f"content of turn {number}")
    if ROLES[role] != "system":
        _filled(text, f"turn {number}")
    return Turn(ROLES[role], text)


def _joined_parts(parts: list[Any], number: int) -> str:
    texts = [p.get("text") for p in parts if isinstance(p, dict) and p.get("type") == "text"]
    if len(texts) != len(parts):
        raise BadRow(
            "BadConversation",
            f"turn {number} has parts that are not text",
            "Use text only.",
        )
    return "".join(_text(text, f"content of turn {number}") for text in texts)


def _checked(turns: list[Turn]) -> tuple[Turn, ...]:
    roles = [turn.role for turn in turns]
    if "assistant" not in roles:
        raise BadRow("BadConversation", "the assistant says nothing", _ENDS_REMEDY)
    if roles[-1] != "assistant":
        raise BadRow("BadConversation", f"the conversation ends with the {roles[-1]}", _ENDS_REMEDY)
    if "system" in roles[1:]:
        raise BadRow(
            "BadConversation",
            "a system turn stands in the middle",
            "Put the system turn first.",
        )
    if len(turns) < 2 or roles[:2] == ["system", "assistant"]:
        raise BadRow("BadConversation", "the assistant is asked nothing", "Add the user's turn.")
    return tuple(turns)
