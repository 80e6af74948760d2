"""Parses a file that is one JSON value over any number of lines: a list of rows, an object with
the rows under one of its keys, or one row.

The elements of a list are decoded one by one, so that each has its line.
"""

from __future__ import annotations

from collections.abc import Iterator
from json import JSONDecodeError
from typing import Any

from finetune_trainer.data.columns import USUAL_NAMES
from finetune_trainer.data.row_errors import RowError
from finetune_trainer.data.text_formats import JSON, NumberedRow, json_error
from finetune_trainer.data.text_lines import BOM, decode
from finetune_trainer.data.tool_calls import is_empty
from finetune_trainer.sources.splits import TRAIN, find_hints, splits_of_name

_REMEDY = "Write one JSON list of objects, or one object per line in a .jsonl file."
_IS_ONE_ROW = "If the object is one row, write it on one line of a .jsonl file."
_COLUMNS = {name for names in USUAL_NAMES.values() for name in names}
_TURN_KEYS = {"role", "from"}
_METADATA = {"citation", "dataset_name", "description", "homepage", "license", "version"}
"""Keys that describe a data set, as in DatasetInfo of datasets."""


def parse_json_document(raw: bytes, split: str = TRAIN) -> Iterator[NumberedRow]:
    """The rows of one JSON value, each with the line in which it begins.

    Where `split` is train, rows under a key that contains the word of another split are an error.
    """
    raw = raw.removeprefix(BOM)
    text = decode(raw)
    if isinstance(text, RowError):
        yield _undecodable_line(raw)
        return
    start = _skip_whitespace(text, 0)
    if text[start : start + 1] == "[":
        yield from _iter_elements(text, start, is_document=True)
    else:
        yield from _iter_object(text, start, split)


def _iter_object(text: str, start: int, split: str) -> Iterator[NumberedRow]:
    """The rows under the one key that has any; otherwise the object is one row."""
    line = _line_of(text, start)
    try:
        value, end = JSON.raw_decode(text, start)
        _check_end(text, end)
    except (ValueError, RecursionError) as error:
        yield _broken(text, error, line)
        return
    nested = _find_nested_rows(value, split)
    if isinstance(nested, RowError):
        yield line, nested.at_end_of_file()
    elif nested is None:
        yield line, value
    else:
        yield from _iter_elements(text, _find_member(text, start, nested), is_document=False)


def _find_nested_rows(value: Any, split: str) -> str | RowError | None:
    """The key of an object that has its rows; None where the object is itself a row.

    Objects in a list are rows unless the list is a column of that name, such as tools, or the
    object has the columns of a row.
    """
    if not isinstance(value, dict) or _is_complete_row(value):
        return None
    lists = [key for key, each in value.items() if isinstance(each, list) and key not in _COLUMNS]
    rows = [key for key in lists if any(_is_row(each) for each in value[key])]
    if len(rows) > 1:
        return RowError(
            "BrokenRow",
            f"the file is one JSON object with rows under several keys: {', '.join(sorted(rows))}",
            f"Write a file for each of them. {_IS_ONE_ROW}",
        )
    if rows:
        return _check_nested_rows(value, rows[0], split) or rows[0]
    if lists and _COLUMNS.isdisjoint(value) and not any(value[key] for key in lists):
        return RowError(
            "BrokenRow",
            f"the file is one JSON object, and the list under {lists[0]!r} has no rows",
            _REMEDY,
        )
    return None


def _check_nested_rows(value: dict[str, Any], rows: str, split: str) -> RowError | None:
    """The error where the rows are of another split, or where other keys would be lost."""
    if TRAIN in splits_of_name(split) and {*splits_of_name(rows), *find_hints(rows)} - {TRAIN}:
        return RowError(
            "BrokenRow",
            f"the rows of the file are under {rows!r}, but the source is read for {split}",
            "Write the rows to train on as a list in a file of their own.",
        )
    lost = sorted(
        key
        for key, each in value.items()
        if key != rows and not is_empty(each) and not (key in _METADATA and _is_flat(each))
    )
    if not lost:
        return None
    return RowError(
        "BrokenRow",
        f"the file is one JSON object with rows under {rows!r}, and the values of "
        f"{', '.join(map(repr, lost))} would be lost",
        f"Write what belongs to the rows into every row, and remove the keys. {_IS_ONE_ROW}",
    )


def _is_flat(value: Any) -> bool:
    return not any(
        isinstance(part, dict | list) for part in (value if isinstance(value, list) else [value])
    )


def _is_complete_row(value: dict[str, Any]) -> bool:
    """Whether an object has a conversation, or a prompt with an answer."""

    def has(role: str) -> bool:
        return not value.keys().isdisjoint(USUAL_NAMES[role])

    has_answer = any(map(has, ("completion", "chosen", "reference")))
    return has("messages") or (has("prompt") and has_answer)


def _is_row(element: Any) -> bool:
    """Whether an element of a list is an object, but not a turn of a conversation."""
    return isinstance(element, dict) and not element.keys() & _TURN_KEYS


def _find_member(text: str, start: int, wanted: str) -> int:
    """Where the value of a key begins in the valid JSON object that begins at `start`."""
    position = start
    while True:
        key, end = JSON.raw_decode(text, _skip_whitespace(text, position + 1))
        value_start = _skip_whitespace(text, _skip_whitespace(text, end) + 1)
        if key == wanted:
            return value_start
        _, end = JSON.raw_decode(text, value_start)
        position = _skip_whitespace(text, end)


def _iter_elements(text: str, start: int, is_document: bool) -> Iterator[NumberedRow]:
    """The elements of the list that begins at `start`; with `is_document` nothing may follow it."""
    position, line, counted = _skip_whitespace(text, start + 1), 1, 0
    while text[position : position + 1] != "]":
        line += text.count("\n", counted, position)
        counted = position
        try:
            value, end = JSON.raw_decode(text, position)
            following = _skip_whitespace(text, end)
            if text[following : following + 1] not in (",", "]"):
                raise JSONDecodeError("Expecting ',' or ']'", text, following)
        except (ValueError, RecursionError) as error:
            yield _broken(text, error, line)
            return
        yield line, value
        has_next = text[following] == ","
        position = _skip_whitespace(text, following + 1) if has_next else following
    if is_document:
        try:
            _check_end(text, position + 1)
        except JSONDecodeError as error:
            yield _broken(text, error, line)


def _check_end(text: str, end: int) -> None:
    following = _skip_whitespace(text, end)
    if following < len(text):
        raise JSONDecodeError("the file goes on after its first value", text, following)


def _broken(text: str, error: Exception, line: int) -> NumberedRow:
    if isinstance(error, JSONDecodeError):
        line = error.lineno
    return line, json_error(error, _REMEDY).at_end_of_file()


def _line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _undecodable_line(raw: bytes) -> NumberedRow:
    """The first line that is not UTF-8, and its error."""
    for number, line in enumerate(raw.split(b"\n"), 1):
        if isinstance(error := decode(line), RowError):
            return number, error.at_end_of_file()
    raise ValueError("every line is text")


def _skip_whitespace(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position
