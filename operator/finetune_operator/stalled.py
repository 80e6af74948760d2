"""What a job or an endpoint waits for."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

INDEFINITELY = datetime.max.replace(tzinfo=UTC)
"""`expected_until` of what is expected without a limit of time."""


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

    @property
    def patience_ends(self) -> datetime | None:
        """When it is not expected any more although nothing else has changed."""
        return None if self.expected_until == INDEFINITELY else self.expected_until


def choose_stall(stalls: Iterable[Stalled | None]) -> Stalled | None:
    """The first one that a person has to end; else the first that the cluster may still end."""
    found = [stalled for stalled in stalls if stalled is not None]
    return min(found, key=lambda stalled: stalled.is_expected, default=None)
