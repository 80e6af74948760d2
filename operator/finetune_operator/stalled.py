"""What a job or an endpoint waits for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stalled:
    """Why an object makes no progress. It continues by itself when the cause is gone: nothing is
    stored, so there is nothing to reset."""

    reason: str
    message: str
