"""Predicates on one field of a spec, each as Python, as CEL for the API server and as text.

The three must agree; tests/api/test_combinations.py compares them with a real API server.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ALWAYS = ("model", "dataset", "method", "training", "compute", "evaluation", "objective")
"""Fields of the spec that the API server always sets."""

Spec = Mapping[str, Any]
"""A FineTuneJob's spec as JSON, defaults filled in."""


@dataclass(frozen=True)
class Is:
    """A field has one of these values. Like every predicate it can be evaluated on a spec (`holds`)
    and written as a CEL expression (`to_cel`) and as Markdown (`to_text`)."""

    path: str
    values: tuple[str | bool, ...]

    def holds(self, spec: Spec) -> bool:
        return value_at(spec, self.path) in self.values

    def to_cel(self) -> str:
        if self.values in ((True,), (False,)):
            value = f"self.{self.path}"
            test = value if self.values[0] else f"!{value}"
        else:
            test = f"self.{self.path} in [{', '.join(repr(v) for v in self.values)}]"
        return " && ".join([*_presence_terms(self.path), test])

    def to_text(self) -> str:
        *most, last = (f"`{_format_value(value)}`" for value in self.values)
        return f"`{self.path}` " + (f"{', '.join(most)} or {last}" if most else last)


@dataclass(frozen=True)
class Given:
    """An optional field or section is set."""

    path: str

    def holds(self, spec: Spec) -> bool:
        return value_at(spec, self.path) is not None

    def to_cel(self) -> str:
        return " && ".join(_presence_terms(self.path))

    def to_text(self) -> str:
        return f"`{self.path}` given"


@dataclass(frozen=True)
class NotEmpty:
    """A list has at least one item."""

    path: str

    def holds(self, spec: Spec) -> bool:
        return bool(value_at(spec, self.path))

    def to_cel(self) -> str:
        return " && ".join([*_presence_terms(self.path), f"size(self.{self.path}) > 0"])

    def to_text(self) -> str:
        return f"`{self.path}` not empty"


@dataclass(frozen=True)
class Above:
    """A number exceeds a limit; an absent one counts as `default`."""

    path: str
    limit: float
    default: float

    def holds(self, spec: Spec) -> bool:
        value = value_at(spec, self.path)
        return float(self.default if value is None else value) > self.limit

    def to_cel(self) -> str:
        there = " && ".join(_presence_terms(self.path))
        test = f"self.{self.path} > {float(self.limit)}"
        if self.default > self.limit:
            return f"(!({there}) || {test})"
        return f"{there} && {test}"

    def to_text(self) -> str:
        return f"`{self.path}` above {self.limit:g}"


Predicate = Is | Given | NotEmpty | Above


def value_at(spec: Spec, path: str) -> Any:
    """The value at a dotted path; None where the spec has none."""
    value: Any = spec
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _presence_terms(path: str) -> list[str]:
    names = path.split(".")
    prefixes = [".".join(names[: i + 1]) for i in range(len(names))]
    return [f"has(self.{prefix})" for prefix in prefixes if prefix not in ALWAYS]


def _format_value(value: str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else value
