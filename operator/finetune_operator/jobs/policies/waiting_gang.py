"""A gang of which some pods have nodes and others find none: it gives its devices back.

Training begins when the last pod runs. A gang that waited indefinitely for its last node would hold
its other devices idle, and two such gangs could hold each other. So after the time that an
autoscaler takes to add a node, the attempt ends without counting as a restart, and the next one
begins after a delay that differs from job to job.
"""

import zlib
from datetime import datetime, timedelta

from finetune_api.failure import Failure

from finetune_operator.jobs.attempt_outcome import FailedAttempt, fail_attempt
from finetune_operator.jobs.observe import Attempt, Observed
from finetune_operator.jobs.stall_checks import describe_missing_pods

GANG_UNSCHEDULABLE = "GangUnschedulable"
FIRST_SPREAD, LONGEST_SPREAD = 30.0, 300.0
"""Seconds over which the next attempts of jobs are spread; the spread doubles with each attempt."""


def check_waiting_gang(
    observed: Observed, attempt: Attempt, patience: timedelta, now: datetime
) -> FailedAttempt | None:
    """The end of an attempt whose pods wait, with devices that others could use.

    Not while pods of an earlier attempt are still ending: they may be what takes the capacity. Nor
    while its own are: then it is ending, and they may still save and report.
    """
    if attempt.job is None or attempt.job_end() or attempt.is_suspended:
        return None
    if any(pod.deadline is not None for pod in attempt.pods):
        return None
    holding = [pod for pod in attempt.pods if pod.node and not pod.has_ended]
    if not holding or has_other_pods(observed, attempt, now):
        return None
    unscheduled = [pod for pod in attempt.pods if pod.unscheduled_since and not pod.has_ended]
    missing = attempt.nodes - len(attempt.pods)
    since = [pod.unscheduled_since for pod in unscheduled if pod.unscheduled_since]
    started = attempt.job_started()
    if missing and started is not None:
        since.append(started)
    if not since or now - min(since) < patience:
        return None
    cause = (
        f"pod {unscheduled[0].name}: {unscheduled[0].unscheduled_message}"
        if unscheduled
        else describe_missing_pods(attempt)
    )
    failure = Failure(
        reason=GANG_UNSCHEDULABLE,
        message=(
            f"{len(unscheduled) + missing} of {attempt.nodes} pods of {attempt.stage} found no "
            f"node in {patience.total_seconds() / 60:g} minutes, so the others gave theirs back; "
            f"{cause}"
        ),
    )
    return fail_attempt(attempt, "Disrupted", now, failure)


def has_other_pods(observed: Observed, attempt: Attempt, now: datetime) -> bool:
    """Whether pods of other attempts of the job have not ended and may still end."""
    others = [p for each in observed.all_attempts() if each is not attempt for p in each.pods]
    return any(pod.may_run(now) for pod in others)


def spread_delay(attempt: Attempt) -> float:
    """Seconds until the next attempt, from the uid of this one's Job: gangs that held each other
    then do not meet again."""
    spread = min(LONGEST_SPREAD, FIRST_SPREAD * 2.0 ** min(attempt.number - 1, 10))
    uid = str((attempt.job or {}).get("metadata", {}).get("uid", ""))
    return spread * zlib.crc32(uid.encode()) / 2**32
