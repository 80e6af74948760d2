"""spec.suspend: stop after a checkpoint, free the devices, and continue later.

Only the newest attempt of the running stage is stopped, by deleting its Job: the kubelet asks its
pods to end, and training saves at the next step. A stage that succeeds meanwhile counts as
succeeded. The job is suspended when no pod is left that may still report; a pod on a dead node,
which cannot be ended, is named and not waited for. Resuming starts the next attempt at once,
regardless of the back-off.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetune_api.failure import Failure
from finetune_api.finetunejob import FineTuneJobStatus

from finetune_operator.jobs.observe import Attempt
from finetune_operator.jobs.policies.retry import recorded_failure
from finetune_operator.jobs.progress import join_few
from finetune_operator.jobs.status_messages import (
    format_resume_point,
    format_slowest_pod,
    format_step,
)
from finetune_operator.manifest import parse_time

SUSPENDED = "Suspended"


@dataclass(frozen=True)
class Stopping:
    """Pods of the attempt may still save and report."""

    message: str


@dataclass(frozen=True)
class Stopped:
    """Nothing of the attempt runs any more: the job is suspended."""

    failure: Failure
    """Records that the attempt has ended, so that resuming begins the next one and counts nothing.
    The failure that the status records for the attempt already, where it does."""
    message: str
    """For the job; the stage gets that of the failure."""
    stage_message: str


def check_suspended(
    status: FineTuneJobStatus, attempt: Attempt, now: datetime
) -> Stopping | Stopped:
    """How far an attempt is that is being stopped."""
    stage = attempt.stage
    if status.suspended_at is None and _may_run(attempt, now):
        saves = ", after a checkpoint" if stage == "train" else ""
        pods = format_slowest_pod(attempt) or _name_orphans(attempt)
        return Stopping(f"{stage} is stopping{saves}: suspend was requested{pods}")
    message = f"{stage} was suspended{format_step(status, stage)}"
    failure = recorded_failure(status, attempt) or Failure(
        stage=stage, reason=SUSPENDED, message=message, attempt=attempt.number
    )
    text = f"suspended; {stage} {format_resume_point(status, stage)}"
    return Stopped(failure, text + _name_lost_pods(attempt, now), message)


def resume(status: FineTuneJobStatus, now: datetime) -> dict[str, Any]:
    """The fields of the status that change when a job continues: time spent suspended does not
    count against its deadline. Excluded nodes may be used again, so a failure on one that was
    suspected counts as the first."""
    since = parse_time(status.suspended_at)
    if since is None:
        return {}
    seconds = status.suspended_seconds
    if status.started_at is not None:
        seconds += max(0, round((now - since).total_seconds()))
    return {
        "suspended_at": None,
        "suspended_seconds": seconds,
        "nodes": [],
        "suspected": None,
    }


def _may_run(attempt: Attempt, now: datetime) -> bool:
    """Whether a pod of it may run; while its Job runs, the cache may not have its pods yet."""
    return attempt.is_live or any(
        not pod.has_ended and not pod.is_given_up(now) for pod in attempt.pods
    )


def _name_orphans(attempt: Attempt) -> str:
    """A user who deleted the Job with --cascade=orphan has to delete its pods too."""
    orphans = [pod.name for pod in attempt.pods if pod.is_orphan and not pod.has_ended]
    if not orphans:
        return ""
    return f"; its Job was deleted without its pods: kubectl delete pod {' '.join(orphans[:4])}"


def _name_lost_pods(attempt: Attempt, now: datetime) -> str:
    lost = [pod for pod in attempt.pods if not pod.has_ended and pod.is_given_up(now)]
    named = join_few([f"pod {pod.name} on node {pod.node}" for pod in lost])
    where = "those nodes" if lost[1:] else "that node"
    return f"; {named} cannot be ended, check {where}" if lost else ""
