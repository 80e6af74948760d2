"""A rank that gives no sign of life: named in the status, and replaced after long enough.

The pods end such an attempt by themselves within the collective timeout, a quarter of an hour by
default. This is for the case that they cannot: after the first report the operator waits for as
long as that timeout, and not less than LEAST_PATIENCE.
"""

from datetime import datetime, timedelta

from finetune_api.failure import Failure
from finetune_api.progress import Progress

from finetune_operator.jobs.attempt_outcome import FailedAttempt, fail_attempt
from finetune_operator.jobs.observe import Attempt
from finetune_operator.jobs.policies.node_exclusion import RANK_STALLED
from finetune_operator.manifest import parse_time

LEAST_PATIENCE = timedelta(minutes=20)


def check_stalled_rank(
    attempt: Attempt, progress: Progress, since: str | None, now: datetime
) -> FailedAttempt | None:
    """The end of an attempt whose leader has reported a silent rank `since` long ago."""
    first = parse_time(since)
    patience = max(LEAST_PATIENCE, attempt.collective_timeout() or LEAST_PATIENCE)
    if not progress.stalled or first is None or now - first < patience:
        return None
    rank = progress.stalled[0]
    more = f" and {len(progress.stalled) - 1} more" if progress.stalled[1:] else ""
    failure = Failure(
        reason=RANK_STALLED,
        message=(
            f"rank {rank.rank} on host {rank.host}{more} gave no sign of life for "
            f"{patience.total_seconds() / 60:.0f} minutes, after step {rank.step}"
        ),
        remedy="check that pod and its node: a device that hangs, a volume that does not "
        "answer, or a process that was stopped",
    )
    return fail_attempt(attempt, "Crashed", now, failure)
