"""What Argo CD and Flux report for an object, and the cases that expect it.

A case brings a world into a state with the operator's own plans, so its status is what the operator
writes and not what a test author thinks that it writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from finetune_operator.decision import Manifest

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
UNREAD = Expected("Progressing", "Current", "Unknown")
"""The operator has not written a status: kstatus treats any such object as finished."""


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


class Recorded(Protocol):
    """A world that keeps what the operator wrote."""

    written: list[Manifest]

    def observe(self) -> Observed: ...


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
