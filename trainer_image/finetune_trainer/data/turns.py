"""One turn of a conversation, read under each key that data sets use.

{role, content} and ShareGPT's {from, value}; OpenAI's tool_calls and function_call, and ShareGPT's
turns function_call and observation; reasoning in a key of its own; weight, and the switches of
other trainers, for turns that are context only. A key that means something here is used or refused;
`unused_turn_keys` names the others. Every function raises RowError in words of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from finetune_trainer.data.row_errors import RowError
from finetune_trainer.data.tool_calls import (
    Json,
    half_a_pair,
    is_empty,
    parse_json_text,
    read_calls,
    to_json_text,
)

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
"""The role of each name that data sets give a turn; `-` is read as `_`."""
_CALL_ROLES = ("function_call", "tool_call")
_PLAIN_ROLES = [name for name in ROLES if name not in _CALL_ROLES and ROLES[name] != "tool"]
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_LEARN_KEYS = ("weight", "train", "training", "loss")
_CALL_KEYS = ("tool_calls", "function_call")
_USED_KEYS = {
    *_ROLE_KEYS,
    *_CONTENT_KEYS,
    *REASONING_KEYS,
    *_LEARN_KEYS,
    *_CALL_KEYS,
    "name",
    "tool_call_id",
}
MEDIA = (
    *("image", "images", "image_url", "image_urls", "image_path", "image_paths", "pixel_values"),
    *("img", "image_file", "image_base64", "image_bytes"),
    *("video", "videos", "video_path", "audio", "audios", "audio_path"),
)
_MEDIA_BYTES = re.compile(
    rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....(?:WEBP|WAVE|AVI )|OggS|fLaC|ID3|....ftyp", re.DOTALL
)
"""How files of images, videos and recordings begin."""
_PLACEHOLDERS = ("<image>", "<video>", "<audio>")
"""The place of an image, a video or a recording, at the beginning or the end of a text."""
_NAME_CONTENT = "Name it content."
_NAME_REASONING = "Name it reasoning_content."
_REFUSED_KEYS = {
    **dict.fromkeys(MEDIA, "Remove rows with images, video or audio: models are trained on text."),
    "tools": "Put the tools into a column tools of the row.",
    "functions": "Put the tools into a column tools of the row.",
    "loss_scale": "Give the turn weight 0 or 1.",
    **dict.fromkeys(("training_detail", "train_detail"), "Give the turn weight 0 or 1."),
    "refusal": "Write the refusal as the content of the turn.",
    "channel": "Write what is not of the channel final as reasoning_content of the answer.",
    "recipient": "Write calls of tools as tool_calls.",
    "masked": "Give the turn weight 0 or 1.",
    "mask": "Give the turn weight 0 or 1.",
    **dict.fromkeys(("text", "output", "message", "response", "parts"), _NAME_CONTENT),
    **dict.fromkeys(("thought", "thoughts", "analysis", "reasoning_details"), _NAME_REASONING),
}
_HARMONY = {
    "channel": re.compile("analysis|commentary"),
    "recipient": re.compile(r"(?:functions|browser)\b.*|python"),
}
"""Keys of OpenAI's harmony format, each with the values of what is no answer to the user; elsewhere
they may name the way on which a message came."""
_PART_KEYS = {"type", "text", "thinking"}
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text"}
_REASONING_PARTS = {"thinking": "thinking", "reasoning": "text"}
_PYTHON = re.compile(
    r"\s*(?:array\()?\[\s*\{'(?:role|from|content|value)':.*\}\s*\](?:, dtype=object\))?\s*",
    re.DOTALL,
)
"""A conversation as Python prints it, and so as pandas writes it into a .csv file."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation."""

    role: str
    """system, user, assistant or tool."""
    content: str
    reasoning: str | None = None
    """What the assistant thought before its answer."""
    tool_calls: tuple[Json, ...] = ()
    """Calls of the assistant, as finetune_trainer.data.tool_calls writes them."""
    name: str | None = None
    tool_call_id: str | None = None
    """Which call a tool turn answers."""
    is_learnt: bool = True
    """False for a turn that is context only."""

    @property
    def is_plain(self) -> bool:
        """Whether it is a turn with role and content only, and not the result of a tool."""
        has_more = self.reasoning or self.tool_calls or self.name or self.tool_call_id
        return not has_more and self.is_learnt and self.role != "tool"


Turns = tuple[Turn, ...]


def parse_turns(value: Any) -> list[Turn]:
    """The turns of a chat column, without empty system turns."""
    # Columnar files and CSV often carry the list as JSON text.
    value = parse_json_text(value)
    refuse_python(value)
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise RowError(
            "WrongType",
            "the conversation is not a list of turns",
            'Write it as [{"role": "user", "content": "..."}, ...].',
        )
    turns = [_parse_turn(entry, number) for number, entry in enumerate(value, 1)]
    return _join_calls([turn for turn in turns if turn.role != "system" or turn.content.strip()])


def _join_calls(turns: list[Turn]) -> list[Turn]:
    """Turns with calls only are joined to the assistant's turn before them, because a server ends
    the turn after the last call."""
    joined: list[Turn] = []
    for turn in turns:
        last = joined[-1] if joined else None
        is_call = bool(turn.tool_calls) and not turn.content and turn.reasoning is None
        is_same = last and last.role == "assistant" and last.is_learnt == turn.is_learnt
        if last and is_call and is_same and turn.name in (None, last.name):
            joined[-1] = replace(last, tool_calls=(*last.tool_calls, *turn.tool_calls))
        else:
            joined.append(turn)
    return joined


def looks_like_turns(value: Any) -> bool:
    """Whether this is a turn or a list of turns, and not other JSON."""
    turns = value if isinstance(value, list) else [value]
    return all(
        isinstance(turn, dict)
        and _role_of(_first(turn, _ROLE_KEYS)) is not None
        and turn.keys() & {*_CONTENT_KEYS, *_CALL_KEYS}
        for turn in turns
    )


def refuse_python(value: Any) -> None:
    """RowError where a text is a conversation as Python prints it, which would be trained on as
    text."""
    if isinstance(value, str) and _PYTHON.fullmatch(value):
        raise RowError(
            "WrongType",
            "a conversation is written as Python prints it, and not as JSON",
            "Write it with json.dumps, or save the data as .jsonl or .parquet.",
        )


def _role_of(name: Any) -> str | None:
    return ROLES.get(name.replace("-", "_")) if isinstance(name, str) else None


def unused_turn_keys(value: Any) -> set[str]:
    """The keys of a conversation's turns that hold something and are not used."""
    value = parse_json_text(value)
    found: set[str] = set()
    for turn in value if isinstance(value, list) else [value]:
        if not isinstance(turn, dict):
            continue
        if not turn.keys() <= _USED_KEYS:
            found |= _unused(turn, _USED_KEYS)
        content = turn.get("content") or turn.get("value")
        if not isinstance(content, list):
            continue
        if _is_json_result(_role_of(_first(turn, _ROLE_KEYS)), content):
            continue
        for part in content:
            if isinstance(part, dict):
                found.update(f"content[].{key}" for key in _unused(part, _PART_KEYS))
    # A prompt or an answer can be a text that happens to be JSON.
    return found if found and looks_like_turns(value) else set()


def _unused(entry: Mapping[str, Any], used: set[str]) -> set[str]:
    return {str(key) for key in entry.keys() - used if not is_empty(entry[key])}


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
        raise half_a_pair(f"the column {column!r}") from None
    return value


def require_nonblank(text: str, what: str) -> str:
    """The same text; RowError where it is blank."""
    if not text.strip():
        raise RowError("EmptyText", f"{what} is empty", "Fill it or remove the row.")
    return text


def _type_name(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        bool: "true or false",
        bytes: "bytes",
        type(None): "null",
        int: "a number",
        float: "a number",
        Decimal: "a number",
    }
    return names.get(type(value), f"a {type(value).__name__}")


def _parse_turn(entry: Mapping[str, Any], number: int) -> Turn:
    name = entry.get("role", entry.get("from"))
    content = entry.get("content", entry.get("value"))
    if len(entry) == 2 and name in _PLAIN_ROLES and isinstance(content, str):
        # As nearly all turns are; the rest of this function is slower.
        return Turn(ROLES[name], _check_text(content, ROLES[name], number))
    name = _read_role_name(entry, number)
    role = ROLES[name]
    content = _only(entry, _CONTENT_KEYS, number)
    for key in entry.keys() & _REFUSED_KEYS.keys():
        hidden = _HARMONY.get(key)
        if not is_empty(entry[key]) and (not hidden or hidden.fullmatch(str(entry[key]))):
            raise _bad_turn(f"turn {number} has {key!r}, which cannot be used", _REFUSED_KEYS[key])
    for key in entry.keys() - _USED_KEYS:
        if holds_media(entry[key]):
            raise _bad_turn(f"turn {number} has media in {key!r}", _REFUSED_KEYS["image"])
    if role == "tool" and not entry.keys() & set(_CONTENT_KEYS):
        raise _bad_turn(f"turn {number} has no content", _NAME_CONTENT)
    calls = _read_calls_of_turn(entry, number)
    if name in _CALL_ROLES:
        calls, content = (*read_calls(content, number), *calls), ""
        if not calls:
            raise RowError("BadTools", f"turn {number} calls no tool", "Write the call as JSON.")
    text, thought = _read_content(content, role, number, may_be_empty=bool(calls))
    reasoning = _read_reasoning(entry, thought, number)
    if role != "assistant" and (calls or reasoning):
        what = "calls tools" if calls else "has reasoning"
        raise _bad_turn(
            f"turn {number} of the {role} {what}", "Only turns of the assistant can have that."
        )
    if reasoning:
        check_one_thought(text, f"turn {number}")
    return Turn(
        role,
        text,
        reasoning=reasoning,
        tool_calls=calls,
        name=_read_label(entry, "name", number),
        tool_call_id=_read_label(entry, "tool_call_id", number),
        is_learnt=_read_is_learnt(entry, role, number),
    )


def _read_role_name(entry: Mapping[str, Any], number: int) -> str:
    role = _only(entry, _ROLE_KEYS, number)
    name = role.replace("-", "_") if isinstance(role, str) else ""
    if name not in ROLES:
        raise _bad_turn(
            f"turn {number} has the role {role!r}",
            "Use the roles system, user, assistant and tool.",
        )
    return name


def _read_calls_of_turn(entry: Mapping[str, Any], number: int) -> tuple[Json, ...]:
    found = [calls for key in _CALL_KEYS if (calls := read_calls(entry.get(key), number))]
    if found[1:] and found[0] != found[1]:
        raise _bad_turn(f"turn {number} has two different calls", "Keep tool_calls only.")
    return found[0] if found else ()


def _read_content(
    content: Any, role: str, number: int, may_be_empty: bool
) -> tuple[str, str | None]:
    """Text and reasoning of the content of a turn."""
    what, thought = f"content of turn {number}", None
    if isinstance(content, list) and not _is_json_result(role, content):
        content, thought = _join_parts(content, number)
    elif role == "tool" and isinstance(content, dict | list | int | float):
        content = to_json_text(content, what)
    if content is None and (may_be_empty or role == "tool"):
        content = ""
    return _check_text(content, role, number, may_be_empty), thought


def _check_text(content: Any, role: str, number: int, may_be_empty: bool = False) -> str:
    text = require_text(content, f"content of turn {number}")
    if role in ("user", "assistant") and not may_be_empty:
        require_nonblank(text, f"turn {number}")
    check_placeholder(text, f"turn {number}")
    return text


def _is_json_result(role: str | None, content: list[Any]) -> bool:
    """Whether a list is what a tool returned, and not the parts of a text."""
    are_parts = bool(content) and all(isinstance(each, dict) and "type" in each for each in content)
    return role == "tool" and not are_parts


def _join_parts(parts: list[Any], number: int) -> tuple[str, str | None]:
    texts: list[str] = []
    thoughts: list[str] = []
    for part in parts:
        part = part if isinstance(part, dict) else {}
        has_media = any(
            not is_empty(each) and (key in MEDIA or holds_media(each)) for key, each in part.items()
        )
        kind = "" if has_media else str(part.get("type", "text" if "text" in part else ""))
        if kind in _TEXT_PARTS:
            found, key = texts, _TEXT_PARTS[kind]
        elif kind in _REASONING_PARTS:
            found, key = thoughts, _REASONING_PARTS[kind]
        else:
            raise _bad_turn(
                f"turn {number} has parts that are not text",
                "Use text only.",
            )
        found.append(require_text(part.get(key), f"content of turn {number}"))
    return "".join(texts), "".join(thoughts) or None


def _read_reasoning(entry: Mapping[str, Any], thought: str | None, number: int) -> str | None:
    found = [entry[key] for key in REASONING_KEYS if not is_empty(entry.get(key))]
    texts = {require_text(each, f"reasoning of turn {number}") for each in found}
    texts |= {thought} if thought else set()
    if len(texts) > 1:
        raise _bad_turn(f"turn {number} has two different reasonings", "Keep one of them.")
    return next((text for text in texts if text.strip()), None)


def _read_is_learnt(entry: Mapping[str, Any], role: str, number: int) -> bool:
    found = {key: entry[key] for key in _LEARN_KEYS if entry.get(key) is not None}
    for key, value in found.items():
        if isinstance(value, str) or value not in (0, 1):
            raise _bad_turn(
                f"turn {number} has the {key} {value!r}, which is neither 0 nor 1",
                f"Write {key} as 0 or 1.",
            )
        if value and role != "assistant" and key != "weight":
            raise _bad_turn(
                f"turn {number} of the {role} has {key} {value!r}, but only the assistant's turns "
                "are learnt",
                f"Remove {key} from it; with sft.lossOn All every turn is learnt.",
            )
    return all(found.values())


def _read_label(entry: Mapping[str, Any], key: str, number: int) -> str | None:
    value = entry.get(key)
    return None if is_empty(value) else require_text(value, f"{key} of turn {number}")


def _only(entry: Mapping[str, Any], keys: tuple[str, str], number: int) -> Any:
    """The value under either key; RowError where the two differ."""
    one, other = entry.get(keys[0]), entry.get(keys[1])
    if one is None or other is None or one == other:
        return other if one is None else one
    raise _bad_turn(
        f"turn {number} has two different values under {keys[0]!r} and {keys[1]!r}",
        "Keep one of them.",
    )


def holds_media(value: Any) -> bool:
    """Whether a value is an image, a video or a recording, or a list with one: a file, or the
    object in which datasets keeps it."""
    match value:
        case bytes():
            return bool(_MEDIA_BYTES.match(value))
        case {"bytes": bytes()} | {"array": list(), "sampling_rate": _}:
            return True
        case list():
            return any(map(holds_media, value))
    return False


def check_placeholder(text: str, what: str) -> None:
    """RowError where a text begins or ends with the placeholder of an image, a video or a
    recording."""
    stripped = text.rstrip()
    for placeholder in _PLACEHOLDERS:
        is_html = placeholder != "<image>" and placeholder.replace("<", "</") in text
        if (text.startswith(placeholder) or stripped.endswith(placeholder)) and not is_html:
            raise _bad_turn(f"{what} has the placeholder {placeholder}", _REFUSED_KEYS["image"])


def check_one_thought(text: str, what: str) -> None:
    """RowError where the text of an answer that has reasoning apart from it has a thought too."""
    if "</think>" in text:
        raise _bad_turn(
            f"{what} has reasoning apart from its text, and </think> in its text",
            "Keep the reasoning in one of the two.",
        )


def _first(entry: Mapping[str, Any], keys: Iterable[str]) -> Any:
    return next((entry[key] for key in keys if entry.get(key) is not None), None)


def _bad_turn(message: str, remedy: str) -> RowError:
    return RowError("BadConversation", message, remedy)
