"""What a job or an endpoint waits for."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Stalled:
    """Why an object makes no progress. It continues by itself when the cause is gone: nothing is
    stored, so there is nothing to reset."""

    reason: str
    message: str
    expected_until: datetime | None = None
    """Time until which the cluster may still provide what is missing, as an autoscaler adds a node
    or a queue admits a Job: the message reports it, and the condition Stalled stays False."""

    @property
    def is_expected(self) -> bool:
        return self.expected_until is not None


def choose_stall(stalls: Iterable[Stalled | None]) -> Stalled | None:
    """The first one that a person has to end; else the first that the cluster may still end."""
    found = [stalled for stalled in stalls if stalled is not None]
    return min(found, key=lambda stalled: stalled.is_expected, default=None)
