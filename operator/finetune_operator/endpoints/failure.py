"""Why a revision of an endpoint has failed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RevisionFailure:
    """What ended the roll-out of a revision. Unlike Stalled it is final: a failed revision does
    not continue by itself."""

    reason: str
    message: str
