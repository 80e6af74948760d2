"""What Argo CD and Flux report for an object, and the cases that expect it.

A case brings a world into a state with the operator's own plans, so its status is what the operator
writes and not what a test author thinks that it writes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from finetune_operator.decision import Manifest

from tests.unit.cluster import Cluster

Health = Literal["Healthy", "Progressing", "Degraded", "Suspended"]
Kstatus = Literal["Current", "InProgress", "Failed", "Unknown"]


@dataclass(frozen=True)
class Expected:
    """The verdict of each tool on one object."""

    argocd: Health
    kstatus: Kstatus
    flux: Kstatus
    """With the healthCheckExprs of examples/gitops/flux; Flux waits while it is Unknown."""


PROGRESSING = Expected("Progressing", "InProgress", "InProgress")
HEALTHY = Expected("Healthy", "Current", "Current")
DEGRADED = Expected("Degraded", "Failed", "Failed")
SUSPENDED = Expected("Suspended", "Current", "Current")
HELD = Expected("Suspended", "InProgress", "InProgress")


@dataclass(frozen=True)
class Observed:
    """A case that was played."""

    found: Manifest
    """The object at its end."""
    written: tuple[Manifest, ...]
    """The object after each status that the operator wrote."""


@dataclass(frozen=True)
class Case:
    """A state of an object, and what the tools have to report for it."""

    name: str
    expected: Expected
    observe: Callable[[], Observed]


class Recorded(Cluster):
    """A world around one object, and every status that was written to it."""

    kind: str
    name: str

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.written: list[Manifest] = []

    def write_status(self, planned_from: Manifest, status: Mapping[str, Any]) -> Manifest:
        found = super().write_status(planned_from, status)
        self.written.append(copy.deepcopy(found))
        return found

    def observe(self) -> Observed:
        return Observed(copy.deepcopy(self.need(self.kind, self.name)), tuple(self.written))


World = TypeVar("World", bound=Recorded)


class Cases(Generic[World]):
    """A list of cases, filled by a decorator of the functions that play them."""

    def __init__(self, make: Callable[..., World]) -> None:
        self.all: list[Case] = []
        self._make = make

    def expect(
        self, expected: Expected, **spec: object
    ) -> Callable[[Callable[[World], None]], None]:
        """Add the decorated function; `spec` are fields of the object's spec."""

        def add(play: Callable[[World], None]) -> None:
            def observe() -> Observed:
                world = self._make(**spec)
                play(world)
                return world.observe()

            self.all.append(Case(play.__name__, expected, observe))

        return add
