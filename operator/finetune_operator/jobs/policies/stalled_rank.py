"""A rank that gives no sign of life: named in the status, and replaced after long enough.

The pods end such an attempt by themselves within a quarter of an hour. This is for the case that
they cannot: the operator's patience is well above theirs.
"""

from datetime import datetime, timedelta

from finetune_api.failure import Failure
from finetune_api.progress import Progress

from finetune_operator.jobs.attempt_outcome import FailedAttempt, fail_attempt
from finetune_operator.jobs.observe import Attempt
from finetune_operator.jobs.policies.node_exclusion import RANK_STALLED
from finetune_operator.manifest import parse_time

PATIENCE = timedelta(minutes=20)


def check_stalled_rank(
    attempt: Attempt, progress: Progress, since: str | None, now: datetime
) -> FailedAttempt | None:
    """The end of an attempt whose leader has reported a silent rank `since` long ago."""
    first = parse_time(since)
    if not progress.stalled or first is None or now < first + PATIENCE:
        return None
    rank = progress.stalled[0]
    more = f" and {len(progress.stalled) - 1} more" if progress.stalled[1:] else ""
    failure = Failure(
        reason=RANK_STALLED,
        message=(
            f"rank {rank.rank} on host {rank.host}{more} gave no sign of life for "
            f"{PATIENCE.seconds // 60} minutes, after step {rank.step}"
        ),
        remedy="check that pod and its node: a device that hangs, a volume that does not "
        "answer, or a process that was stopped",
    )
    return fail_attempt(attempt, "Crashed", now, failure)
