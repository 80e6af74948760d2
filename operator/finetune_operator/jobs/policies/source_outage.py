"""A hub or a bucket that does not answer: attempts cost no restart for as long as an outage lasts.

Outages last minutes, and three restarts are over in one. A source that never answers, for a wrong
address or a network policy, must still end the job; so after PATIENCE attempts count as usual.
"""

from dataclasses import replace
from datetime import timedelta

from finetune_operator.jobs.attempt_outcome import FailedAttempt
from finetune_operator.manifest import parse_time

OUTAGE = "SourceUnavailable"
PATIENCE = timedelta(hours=1)
"""Time from the start of the stage in which a source may be unavailable."""


def excuse_outage(outcome: FailedAttempt, started_at: str | None) -> FailedAttempt:
    """The outcome as a disruption where a source did not answer; `started_at` is the stage's start,
    RFC 3339."""
    started = parse_time(started_at)
    if outcome.kind != "Crashed" or outcome.failure.reason != OUTAGE or started is None:
        return outcome
    return replace(outcome, kind="Disrupted") if outcome.at - started < PATIENCE else outcome
