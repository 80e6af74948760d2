"""Merge-patch and server-side apply on plain data; arguments are never changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merged(old: Any, patch: Any) -> Any:
    """RFC 7386: null removes, maps are merged, everything else is replaced."""
    if not isinstance(patch, Mapping):
        return patch
    new = dict(old) if isinstance(old, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            new.pop(key, None)
        else:
            new[key] = merged(new.get(key), value)
    return new


def applied(old: Any, before: Any, wanted: Any) -> Any:
    """The result when a manager that applied `before` applies `wanted` to `old`.

    Lists are replaced whole.
    """
    if not (isinstance(wanted, Mapping) and isinstance(old, Mapping)):
        return wanted
    new = dict(old)
    owned = before if isinstance(before, Mapping) else {}
    for key in owned:
        if key not in wanted and key in new:
            left = _without(new[key], owned[key])
            if left is None:
                del new[key]
            else:
                new[key] = left
    for key, value in wanted.items():
        new[key] = applied(new.get(key), owned.get(key), value) if key in new else value
    return new


def _without(value: Any, owned: Any) -> Any:
    """A value without its owned fields; None if nothing remains."""
    if not (isinstance(value, Mapping) and isinstance(owned, Mapping)):
        return None
    left = {k: v for k, v in value.items() if k not in owned}
    for key in owned:
        if key in value:
            rest = _without(value[key], owned[key])
            if rest is not None:
                left[key] = rest
    return left or None
