"""Tools: their descriptions and the assistant's calls, in the forms in which data sets write them.

Descriptions become OpenAI's form, {"type": "function", "function": {...}}, and calls too, with the
arguments as an object: chat templates take both like this. Every function raises RowError in words
of the file; the caller adds file and line.
"""

from __future__ import annotations

import json
from typing import Any

from finetune_trainer.data.row_errors import RowError
from finetune_trainer.data.text_formats import JSON

Json = dict[str, Any]
_PARAMETER_KEYS = ("parameters", "input_schema")
_ARGUMENT_KEYS = ("arguments", "args", "input", "parameters", "kwargs", "params")
_CALL_KEYS = {"id", "type", "index", "function", "name", "description", *_ARGUMENT_KEYS}
_TOOL_EXAMPLE = '[{"type": "function", "function": {"name": "...", "parameters": {...}}}]'


def read_tools(value: Any, name: str) -> tuple[Json, ...]:
    """The tools of a column, a list or its JSON text; empty where the column is."""
    tools = tuple(_read_tool(parse_json_text(entry), name) for entry in _read_entries(value))
    return _check_json(tools, f"the column {name!r}")


def _read_entries(value: Any) -> list[Any]:
    """The entries of a list or its JSON text, or the only entry; none where the value is empty."""
    value = parse_json_text(value)
    if is_empty(value):
        return []
    return value if isinstance(value, list) else [value]


def _check_json(entries: tuple[Json, ...], what: str) -> tuple[Json, ...]:
    """The same entries, in which JSON texts are parsed; RowError where JSON cannot write them."""
    to_json_text(entries, what)
    return entries


def _read_tool(entry: Any, name: str) -> Json:
    if isinstance(entry, dict):
        # OpenAI's Responses API and Anthropic have no object around the description.
        outer = {key: each for key, each in entry.items() if key != "type" and each is not None}
        is_nested = "function" in entry
        function = outer.pop("function", None) if is_nested else outer
        if isinstance(function, dict) and _is_name(function.get("name")):
            settings = outer if is_nested else {}
            return {"type": "function", "function": _read_function(function), **settings}
    raise RowError(
        "BadTools",
        f"the column {name!r} does not hold descriptions of tools with names",
        f"Write them as {_TOOL_EXAMPLE}, or as the JSON text of it.",
    )


def _read_function(function: Json) -> Json:
    """The description with its parameters as a JSON schema, whatever data sets call them."""
    rest = {key: value for key, value in function.items() if key not in _PARAMETER_KEYS}
    found = (parse_json_text(function.get(key)) for key in _PARAMETER_KEYS)
    parameters = next((each for each in found if each not in (None, "")), None)
    if parameters is None:
        return rest
    is_flat = (
        parameters != {}
        and _holds_schemas(parameters)
        and not _holds_schemas(parameters.get("properties"))
    )
    schema = {"type": "object", "properties": parameters} if is_flat else parameters
    return {**rest, "parameters": schema}


def _holds_schemas(value: Any) -> bool:
    """Whether this is an object of objects: of a JSON schema, only its properties are."""
    return isinstance(value, dict) and all(isinstance(each, dict) for each in value.values())


def read_documents(value: Any, name: str) -> tuple[Json, ...]:
    """The documents of a column, a list of objects or its JSON text; empty where the column is."""
    documents = parse_json_text(value)
    if documents in (None, ""):
        return ()
    if isinstance(documents, list) and all(isinstance(each, dict) for each in documents):
        return _check_json(tuple(documents), f"the column {name!r}")
    raise RowError(
        "WrongType",
        f"the column {name!r} is not a list of documents",
        'Write it as [{"title": "...", "text": "..."}, ...].',
    )


def read_calls(value: Any, number: int) -> tuple[Json, ...]:
    """The calls of turn `number`: a list of them or one, or the JSON text of either."""
    calls = tuple(_read_call(entry, number) for entry in _read_entries(value))
    return _check_json(calls, f"turn {number}")


def _read_call(entry: Any, number: int) -> Json:
    function = entry.get("function", entry) if isinstance(entry, dict) else None
    if not isinstance(function, dict) or not _is_name(function.get("name")):
        raise _bad_call(number, "a call has no name")
    for key in (function.keys() | entry.keys()) - _CALL_KEYS:
        if not is_empty({**entry, **function}[key]):
            raise _bad_call(number, f"a call has {key!r}, which cannot be used")
    keys = ((part, key) for part in (function, entry) for key in _ARGUMENT_KEYS)
    given = [parse_json_text(part[key]) for part, key in keys if not is_empty(part.get(key))]
    arguments = given[0] if given else {}
    if any(each != arguments for each in given):
        raise _bad_call(number, f"{function['name']} has different arguments under two keys")
    if not isinstance(arguments, dict):
        raise _bad_call(number, f"the arguments of {function['name']} are not a JSON object")
    call: Json = {
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }
    call_id = entry.get("id")
    return {"id": call_id, **call} if isinstance(call_id, str) and call_id else call


def _bad_call(number: int, why: str) -> RowError:
    return RowError(
        "BadTools",
        f"turn {number} calls tools, and {why}",
        'Write calls as {"function": {"name": "...", "arguments": {...}}}.',
    )


def parse_json_text(value: Any) -> Any:
    """The value of a JSON text; any other value, and JSON with a key twice or NaN, as it is."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            return JSON.decode(value)
        except (ValueError, RecursionError):
            return value
    return value


def is_empty(value: Any) -> bool:
    """Whether the value of a column or a key is null or has no content."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def drop_nulls(value: Any) -> Any:
    """The value without null entries of objects.

    Columnar files give every object the keys of all of them, so a null is a key that is absent.
    """
    if isinstance(value, dict):
        return {key: drop_nulls(each) for key, each in value.items() if each is not None}
    return [drop_nulls(each) for each in value] if isinstance(value, list) else value


def to_json_text(value: Any, what: str) -> str:
    """The value as JSON; RowError where it cannot be written, as dates and bytes."""
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:
        raise half_a_pair(what) from None
    except (TypeError, ValueError, RecursionError):
        raise RowError(
            "WrongType",
            f"{what} holds a value that JSON does not have, such as a date or bytes",
            "Write it as text or as a number.",
        ) from None
    return text


def half_a_pair(what: str) -> RowError:
    """The error for a text with one half of a surrogate pair, which cannot be tokenised."""
    return RowError(
        "BrokenRow",
        f"{what} holds half of a surrogate pair",
        "Write characters beyond U+FFFF as themselves or as two \\u escapes.",
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
