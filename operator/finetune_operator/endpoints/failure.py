"""Why a revision of an endpoint has failed, and when the next one with the same content is tried.

A server that crashes may have met a broken device, a full node or a slow volume, so its content is
tried again a few times, each time as a new revision. KServe reports such a crash as a model that
failed to load. A wrong answer, too little memory or an invalid spec stay the same until a user
changes something.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

RETRIED = frozenset({"CrashLoop", "FailedToLoad", "BlockedByFailedLoad"})
RETRY_DELAYS = tuple(timedelta(minutes=minutes) for minutes in (1, 4, 16))


@dataclass(frozen=True)
class RevisionFailure:
    """What ended the roll-out of a revision, which does not continue."""

    reason: str
    message: str
    retry_at: datetime | None = None
    """When another revision with the same content starts; None if nothing is tried again."""

    @property
    def is_retried(self) -> bool:
        """Whether the roll-out continues by itself."""
        return self.retry_at is not None


def find_retry_time(reason: str, failures: int, now: datetime) -> datetime | None:
    """When to try again after as many failures before this one."""
    if reason not in RETRIED or failures >= len(RETRY_DELAYS):
        return None
    return now + RETRY_DELAYS[failures]
