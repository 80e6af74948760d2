"""The state of a revision that does not take traffic yet: starting, being checked, or failed."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from finetune_api.modelendpoint import RevisionState

from finetune_operator.decision import HttpRequest, View
from finetune_operator.endpoints import parity_check, pods, workload
from finetune_operator.endpoints.failure import RevisionFailure, find_retry_time
from finetune_operator.endpoints.observe import Observed, Revision
from finetune_operator.manifest import parse_time, read_reason
from finetune_operator.resources.vllm import START_SECONDS
from finetune_operator.stalled import Stalled

START_TIMEOUT = timedelta(seconds=START_SECONDS)
"""Counted from the start of the container, because waiting for a node may take days."""
UNREACHABLE_AFTER = timedelta(minutes=1)
"""How long ready pods may leave requests unanswered before the endpoint is Stalled."""


@dataclass(frozen=True)
class Assessment:
    """The state of a revision and its reason."""

    state: RevisionState
    message: str | None = None
    problem: Stalled | RevisionFailure | None = None
    """What the user must provide, or why the revision failed."""
    requests: tuple[HttpRequest, ...] = ()
    requeue_after: float | None = None
    """Seconds until time alone may change the assessment."""


def assess_revision(
    revision: Revision, observed: Observed, view: View, patience: timedelta, now: datetime
) -> Assessment:
    """Assess the revision that is to take the traffic next; `patience` is what a scale-up of the
    cluster may take."""
    record = revision.record
    if record.state == "Failed":
        reason, _, message = (record.message or "").partition(": ")
        return _fail(
            RevisionFailure(
                reason=read_reason(reason, "RevisionFailed"),
                message=message or "the status holds no reason for it",
                retry_at=parse_time(record.retry_at),
            ),
            now,
        )
    found = _assess_progress(revision, observed, view, patience, now)
    if isinstance(found, RevisionFailure):
        retry_at = find_retry_time(found.reason, record.failed_before, now)
        return _fail(replace(found, retry_at=retry_at), now)
    return found


def _assess_progress(
    revision: Revision, observed: Observed, view: View, patience: timedelta, now: datetime
) -> Assessment | RevisionFailure:
    crash = pods.find_crash(revision.pods)
    if crash is not None:
        return crash
    progress = workload.check_progress(revision, observed.spec.replicas, now)
    if isinstance(progress, RevisionFailure):
        return progress
    if progress == "Starting":
        return _assess_start(revision, observed.spec.replicas, patience, now)
    return _assess_checks(revision, observed, view, now)


def _assess_start(
    revision: Revision, replicas: int, patience: timedelta, now: datetime
) -> Assessment | RevisionFailure:
    stalled = pods.find_stall(revision.pods, patience, now)
    stalled = stalled or workload.find_creation_stall(revision)
    started = pods.find_start_time(revision.pods)
    if started is not None and now - started >= START_TIMEOUT:
        minutes = int(START_TIMEOUT.total_seconds() // 60)
        text = f"no answer {minutes} minutes after the start of the container"
        return RevisionFailure("StartTimeout", text)
    count = len(pods.select_ready(revision.pods))
    message = stalled.message if stalled else f"{count} of {replicas} pods ready"
    due = [] if started is None else [started + START_TIMEOUT]
    if revision.is_kserve:
        due.append(now + workload.INVALID_SPEC_GRACE)
    left = (min(due) - now).total_seconds() if due else None
    return Assessment("Starting", message, stalled, requeue_after=left)


def _assess_checks(
    revision: Revision, observed: Observed, view: View, now: datetime
) -> Assessment | RevisionFailure:
    ready = pods.select_ready(revision.pods)
    result = parity_check.check_pods(ready, observed.name, revision.number, observed.probe, view)
    if result.outcome == "Passed":
        return Assessment("Active")
    if isinstance(result.outcome, RevisionFailure):
        return result.outcome
    since = pods.find_ready_time(revision.pods)
    is_unreachable = result.has_error and since is not None and now - since >= UNREACHABLE_AFTER
    return Assessment(
        "Checking",
        result.detail,
        Stalled("NoAnswer", result.detail) if is_unreachable else None,
        result.requests,
        parity_check.RETRY_SECONDS,
    )


def _fail(why: RevisionFailure, now: datetime) -> Assessment:
    left = (why.retry_at - now).total_seconds() if why.retry_at else None
    return Assessment("Failed", f"{why.reason}: {why.message}", why, requeue_after=left)
