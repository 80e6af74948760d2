"""How far a revision is that does not take traffic yet: starting, being checked, or failed."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.modelendpoint import RevisionState

from finetune_operator.decision import HttpRequest, View
from finetune_operator.endpoints import checks, pods, workload
from finetune_operator.endpoints.observe import Observed, Revision
from finetune_operator.resources.vllm import START_SECONDS
from finetune_operator.stalled import Stalled

START_DEADLINE = timedelta(seconds=START_SECONDS)
"""From the start of the container, not from the wish: waiting for a node may take days."""
SILENCE = timedelta(minutes=1)
"""How long ready pods may be silent before that is worth a person's attention."""


@dataclass(frozen=True)
class Assessment:
    """The state of a revision and why."""

    state: RevisionState
    message: str | None = None
    stalled: Stalled | None = None
    """What a person must provide, or why it failed."""
    requests: tuple[HttpRequest, ...] = ()
    look_again: float | None = None
    """Seconds until time alone may change the assessment."""


def assess(revision: Revision, observed: Observed, view: View, now: datetime) -> Assessment:
    """Judge the wished revision."""
    if revision.record.state == "Failed":
        return _failed(_remembered(revision))
    crash = pods.crashed(revision.pods)
    if crash is not None:
        return _failed(crash)
    progress = workload.progress(revision, observed.spec.replicas, now)
    if isinstance(progress, Stalled):
        return _failed(progress)
    if progress == "Starting":
        return _starting(revision, observed.spec.replicas, now)
    return _checking(revision, observed, view, now)


def _starting(revision: Revision, replicas: int, now: datetime) -> Assessment:
    waiting = pods.obstacle(revision.pods) or workload.stuck(revision)
    since = pods.running_since(revision.pods)
    if since is not None and now - since >= START_DEADLINE:
        minutes = int(START_DEADLINE.total_seconds() // 60)
        text = f"no answer {minutes} minutes after the start of the container"
        return _failed(Stalled("StartTimeout", text))
    count = len(pods.ready(revision.pods))
    message = waiting.message if waiting else f"{count} of {replicas} pods ready"
    left = None if since is None else (since + START_DEADLINE - now).total_seconds()
    if revision.kserve:
        grace = workload.INVALID_SPEC_GRACE.total_seconds()
        left = grace if left is None else min(left, grace)
    return Assessment("Starting", message, waiting, look_again=left)


def _checking(revision: Revision, observed: Observed, view: View, now: datetime) -> Assessment:
    verdict = checks.examine(
        pods.ready(revision.pods), observed.name, revision.number, observed.spec.probe, view
    )
    if verdict.outcome == "Passed":
        return Assessment("Active")
    if isinstance(verdict.outcome, Stalled):
        return _failed(verdict.outcome)
    since = pods.ready_since(revision.pods)
    silent = verdict.silent and since is not None and now - since >= SILENCE
    return Assessment(
        "Checking",
        verdict.detail,
        Stalled("NoAnswer", verdict.detail) if silent else None,
        verdict.requests,
        checks.RETRY_SECONDS,
    )


def _failed(why: Stalled) -> Assessment:
    return Assessment("Failed", f"{why.reason}: {why.message}", why)


def _remembered(revision: Revision) -> Stalled:
    reason, _, message = (revision.record.message or "").partition(": ")
    return Stalled(reason or "RevisionFailed", message or "no reason was kept")
