"""A condition on one field, for Python, for the API server and for people.

The three must say the same, which tests/api/test_combinations.py holds against the real API server.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ALWAYS = ("model", "dataset", "method", "training", "compute", "evaluation", "objective")
"""Fields of the spec that the API server always fills in."""

Spec = Mapping[str, Any]
"""A FineTuneJob's spec as JSON, defaults filled in."""


@dataclass(frozen=True)
class Is:
    """A field has one of these values."""

    path: str
    values: tuple[str | bool, ...]

    def holds(self, spec: Spec) -> bool:
        """Whether it does."""
        return value_at(spec, self.path) in self.values

    def expression(self) -> str:
        """The same in CEL."""
        if self.values in ((True,), (False,)):
            value = f"self.{self.path}"
            test = value if self.values[0] else f"!{value}"
        else:
            test = f"self.{self.path} in [{', '.join(repr(v) for v in self.values)}]"
        return " && ".join([*_present(self.path), test])

    def words(self) -> str:
        """The same for people."""
        *most, last = (f"`{_shown(value)}`" for value in self.values)
        return f"`{self.path}` " + (f"{', '.join(most)} or {last}" if most else last)


@dataclass(frozen=True)
class Given:
    """An optional field or section is there."""

    path: str

    def holds(self, spec: Spec) -> bool:
        """Whether it is."""
        return value_at(spec, self.path) is not None

    def expression(self) -> str:
        """The same in CEL."""
        return " && ".join(_present(self.path))

    def words(self) -> str:
        """The same for people."""
        return f"`{self.path}` given"


@dataclass(frozen=True)
class NotEmpty:
    """A list has at least one item."""

    path: str

    def holds(self, spec: Spec) -> bool:
        """Whether it has."""
        return bool(value_at(spec, self.path))

    def expression(self) -> str:
        """The same in CEL."""
        return " && ".join([*_present(self.path), f"size(self.{self.path}) > 0"])

    def words(self) -> str:
        """The same for people."""
        return f"`{self.path}` not empty"


@dataclass(frozen=True)
class Above:
    """A number exceeds a limit; an absent one counts as `default`."""

    path: str
    limit: float
    default: float

    def holds(self, spec: Spec) -> bool:
        """Whether it does."""
        value = value_at(spec, self.path)
        return float(self.default if value is None else value) > self.limit

    def expression(self) -> str:
        """The same in CEL."""
        there = " && ".join(_present(self.path))
        test = f"self.{self.path} > {float(self.limit)}"
        if self.default > self.limit:
            return f"(!({there}) || {test})"
        return f"{there} && {test}"

    def words(self) -> str:
        """The same for people."""
        return f"`{self.path}` above {self.limit:g}"


Predicate = Is | Given | NotEmpty | Above


def value_at(spec: Spec, path: str) -> Any:
    """What stands at a path written with dots; None where nothing does."""
    value: Any = spec
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _present(path: str) -> list[str]:
    names = path.split(".")
    prefixes = [".".join(names[: i + 1]) for i in range(len(names))]
    return [f"has(self.{prefix})" for prefix in prefixes if prefix not in ALWAYS]


def _shown(value: str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else value
