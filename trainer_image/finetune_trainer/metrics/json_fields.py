"""JSON answers compared field by field."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n\s*```\s*\Z", re.DOTALL)
Fields = dict[str, Any]


def parse_fields(text: str) -> Fields | None:
    """The values of a JSON object by their path, such as `items[0].name`; None where the text is no
    JSON object. A Markdown fence around it is ignored."""
    fenced = _FENCE.match(text)
    try:
        found = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return None
    return dict(_flatten(found, "")) if isinstance(found, dict) else None


def match_fields(
    answer: Fields | None, reference: Fields, normalise: Callable[[str], str]
) -> dict[str, bool]:
    """Whether each field of answer and reference is in both with the same value, by path."""
    given = answer or {}
    return {
        path: path in given
        and path in reference
        and _is_same(given[path], reference[path], normalise)
        for path in dict.fromkeys((*reference, *given))
    }


def score_fields(
    answer: Fields | None, reference: Fields, normalise: Callable[[str], str]
) -> float:
    """F1 of the fields, 0 to 1: 2 * matching / (fields of the answer + fields of the reference)."""
    if answer is None:
        return 0.0
    matching = sum(match_fields(answer, reference, normalise).values())
    total = len(answer) + len(reference)
    return 2 * matching / total if total else 1.0


def _flatten(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _flatten(below, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for index, below in enumerate(value):
            yield from _flatten(below, f"{path}[{index}]")
    elif path:
        yield path, value


def _is_same(given: Any, expected: Any, normalise: Callable[[str], str]) -> bool:
    if isinstance(given, str) and isinstance(expected, str):
        return normalise(given) == normalise(expected)
    # In Python True is 1; in JSON they differ.
    return isinstance(given, bool) == isinstance(expected, bool) and bool(given == expected)
