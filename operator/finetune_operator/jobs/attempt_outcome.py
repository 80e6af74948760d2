"""How an attempt ended, judged by its pods as soon as they end.

A gang goes down together, so most of its pods fail because another one did. The first thing
that went wrong is the cause: a rank that was killed and whose peers then lost their connection
is not a crash, and ranks that saved a checkpoint because a peer ran out of memory were not
preempted. An error of the user is one on whichever pod it was found.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from finetune_api.run import ExitCode, Failure, StageResult

from finetune_operator.jobs.observe import KILL_SLACK, Attempt, PodFacts

EndKind = Literal["Succeeded", "UserError", "Crashed", "Disrupted", "Preempted"]
CAUSE_RANK = {"Disrupted": 0, "Crashed": 1, "Preempted": 2}
"""Which of two causes in the same second came first; the API server counts in seconds."""
PEER_LOST = "PeerLost"
"""Reason of a rank that lost the connection to another one: a consequence, not a cause."""
FENCED = frozenset({"Fenced", "AttemptAlreadyClaimed"})
"""Reasons of an attempt that found another one at work: nothing is wrong with the job."""
PEER_PATIENCE = timedelta(seconds=30)
"""Time that the other rank, or its node, has to tell what happened."""
CLOCK_SLACK = timedelta(minutes=1)
"""Difference up to which times of kubelets are taken as they are, to know what came first."""
JOB_DELETED = "JobDeleted"
REFUSED = "RefusedByNode"
"""Reason of a pod that was scheduled and never ran, as for a device that its node does not have."""
CACHE_SLACK = timedelta(seconds=5)
"""Time in which the pods of an ended Job may still be missing from the cache."""


@dataclass(frozen=True)
class Outcome:
    """How and when an attempt ended."""

    kind: EndKind
    at: datetime
    result: StageResult | None = None
    failure: Failure | None = None
    pod: PodFacts | None = None
    """The pod that was the cause, where it was one."""


def ending(attempt: Attempt, now: datetime) -> Outcome | None:
    """How the attempt ended; None while it runs, or while what ended it is not clear."""
    mistake = _user_error(attempt, now)
    if mistake is not None:
        return mistake
    success = _success(attempt, now)
    if success is not None:
        return success
    lost = _node_lost(attempt, now)
    if lost is not None:
        return lost
    cause = _first_cause(attempt, now)
    if cause is not None and cause.kind == "Crashed":
        return cause
    if any(_may_still_report(pod, now) for pod in attempt.pods):
        return None
    return cause or _vanished(attempt, now)


def _user_error(attempt: Attempt, now: datetime) -> Outcome | None:
    for pod in attempt.pods:
        if pod.exit_code == ExitCode.USER_ERROR:
            failure = pod.result.failure if pod.result and pod.result.failure else _plain(pod)
            at = _when(pod, now)
            return Outcome("UserError", at, pod.result, _complete(failure, attempt), pod)
    return None


def _success(attempt: Attempt, now: datetime) -> Outcome | None:
    if len(attempt.pods) < attempt.nodes:
        return None
    if any(pod.phase != "Succeeded" for pod in attempt.pods):
        return None
    at = max(_when(pod, now) for pod in attempt.pods)
    leader = attempt.leader()
    result = leader.result if leader else None
    if result is not None and result.outcome == "Succeeded" and result.stage == attempt.stage:
        return Outcome("Succeeded", at, result)
    message = f"pod {leader.name if leader else attempt.stage} ended without a readable result"
    failure = Failure(reason="NoResult", message=message)
    return Outcome("Crashed", at, None, _complete(failure, attempt))


def _node_lost(attempt: Attempt, now: datetime) -> Outcome | None:
    """A pod on a dead node never ends; its peers cannot go on without it."""
    for pod in attempt.pods:
        if pod.disruption and pod.disruption.node_lost and not pod.finished:
            return _disrupted(attempt, pod, now)
    return None


def _may_still_report(pod: PodFacts, now: datetime) -> bool:
    """Whether the pod was asked to end and is within the time that it was given."""
    return pod.deadline is not None and not pod.finished and now < pod.deadline + KILL_SLACK


def _first_cause(attempt: Attempt, now: datetime) -> Outcome | None:
    """The earliest cause; a rank that only lost its peer waits for the peer's own story."""
    causes = sorted(_causes(attempt, now), key=lambda cause: (cause.at, CAUSE_RANK[cause.kind]))
    echoes = [cause for cause in causes if _is_echo(cause)]
    if not echoes:
        return causes[0] if causes else None
    first = echoes[0]
    told = [c for c in causes if not _is_echo(c) and (c.kind != "Preempted" or c.at < first.at)]
    if told:
        return told[0]
    if len(attempt.pods) < attempt.nodes:
        return _gone(attempt, first.at)  # it had not failed: a Job ends only pods that are active
    silent = any(not pod.finished for pod in attempt.pods)
    return None if silent and now < first.at + PEER_PATIENCE else first


def _is_echo(cause: Outcome) -> bool:
    return cause.failure is not None and cause.failure.reason == PEER_LOST


def _causes(attempt: Attempt, now: datetime) -> Iterator[Outcome]:
    for pod in attempt.pods:
        if pod.disruption is not None and pod.disruption.own_doing and pod.phase == "Failed":
            at, failure = _disrupted_at(pod, now), _complete(_greedy(pod), attempt)
            yield Outcome("Crashed", at, pod.result, failure, pod)
        elif pod.disruption is not None and (pod.finished or pod.deadline is not None):
            yield _disrupted(attempt, pod, now)
        elif pod.phase == "Failed" and pod.exit_code == ExitCode.PREEMPTED:
            failure = Failure(reason="Preempted", message=f"pod {pod.name} was asked to stop")
            at = pod.deleted_at or _when(pod, now)
            yield Outcome("Preempted", at, pod.result, _complete(failure, attempt), pod)
        elif pod.deleted_at is not None and pod.phase != "Succeeded":
            failure = Failure(reason="PodDeleted", message=_deleted(pod))
            yield Outcome("Preempted", pod.deleted_at, pod.result, _complete(failure, attempt), pod)
        elif pod.phase == "Failed":
            at, failure = _when(pod, now), _complete(_told(pod), attempt)
            kind: EndKind = "Disrupted" if failure.reason in FENCED else "Crashed"
            yield Outcome(kind, at, pod.result, failure, pod)


def _vanished(attempt: Attempt, now: datetime) -> Outcome | None:
    """The Job is over or gone, and the pods that would tell why are not there."""
    if attempt.job is None:
        if any(not pod.finished and pod.deadline is None for pod in attempt.pods):
            return None
        failure = Failure(
            reason=JOB_DELETED, message=f"the Job of {attempt.stage} {attempt.number} was deleted"
        )
        return Outcome("Disrupted", now, None, _complete(failure, attempt))
    over = attempt.job_end()
    if over is None or len(attempt.pods) >= attempt.nodes or now < over + CACHE_SLACK:
        return None
    return _gone(attempt, over)


def _gone(attempt: Attempt, at: datetime) -> Outcome:
    """A pod is missing that would tell the story."""
    what = f"a pod of {attempt.stage} attempt {attempt.number}"
    failure = Failure(reason="PodDeleted", message=f"{what} was deleted before its end was seen")
    return Outcome("Disrupted", at, None, _complete(failure, attempt))


def ended_by_us(attempt: Attempt, at: datetime, failure: Failure, kind: EndKind) -> Outcome:
    """An attempt that the operator gives up, although its pods go on."""
    return Outcome(kind, at, None, _complete(failure, attempt))


def _disrupted(attempt: Attempt, pod: PodFacts, now: datetime) -> Outcome:
    disruption = pod.disruption
    detail = f": {disruption.message}" if disruption and disruption.message else ""
    reason = disruption.reason if disruption else "Disrupted"
    failure = Failure(reason=reason, message=f"pod {pod.name} was disrupted{detail}")
    at = _disrupted_at(pod, now)
    return Outcome("Disrupted", at, pod.result, _complete(failure, attempt), pod)


def _disrupted_at(pod: PodFacts, now: datetime) -> datetime:
    """When it was told to go, which a kubelet may have written too."""
    at = pod.disruption.at if pod.disruption else None
    return _possible(at, pod, now) if at else _when(pod, now)


def _when(pod: PodFacts, now: datetime) -> datetime:
    """When it ended; a pod that the kubelet refused never ran, so the time of its creation."""
    return _possible(pod.finished_at or pod.created_at or now, pod, now)


def _possible(at: datetime, pod: PodFacts, now: datetime) -> datetime:
    """A kubelet's clock may be years off: what ended before it was made, or later, ended now."""
    return at if (pod.created_at or at) - CLOCK_SLACK <= at <= now + CLOCK_SLACK else now


def _told(pod: PodFacts) -> Failure:
    """What a failed pod says; a first process that outlived the kill of a rank knows no better."""
    failure = pod.result.failure if pod.result else None
    if failure is None or (failure.reason == "RankFailed" and pod.exit_reason == "OOMKilled"):
        return _plain(pod)
    return failure


def _deleted(pod: PodFacts) -> str:
    failure = pod.result.failure if pod.result else None
    saved = f" and could not save its work: {failure.message}" if failure else ""
    return f"pod {pod.name} was deleted{saved}"


def _greedy(pod: PodFacts) -> Failure:
    """The kubelet ended it for its own use; another node would not change that."""
    assert pod.disruption is not None
    shared = '"shm"' in pod.disruption.message
    return Failure(
        reason="Evicted",
        message=f"pod {pod.name} was evicted for what it used itself: {pod.disruption.message}",
        remedy="raise sharedMemory in the AcceleratorProfile" if shared else None,
    )


def _plain(pod: PodFacts) -> Failure:
    """What can be said of a pod that left no result."""
    if pod.exit_reason == "OOMKilled":
        return Failure(
            reason="OutOfHostMemory",
            message=f"pod {pod.name} was killed for using more host memory than it may",
            remedy="raise hostMemoryPerDevice in the AcceleratorProfile",
        )
    if pod.refusal:
        return Failure(
            reason=REFUSED,
            message=f"node {pod.node} did not run pod {pod.name}: {pod.refusal[:1024]}",
            remedy=f"kubectl describe node {pod.node}",
        )
    code = "no exit code" if pod.exit_code is None else f"exit code {pod.exit_code}"
    return Failure(
        reason="Crashed",
        message=f"pod {pod.name} ended with {code} and left no result",
        remedy=f"kubectl logs {pod.name}",
    )


def _complete(failure: Failure, attempt: Attempt) -> Failure:
    return failure.model_copy(update={"stage": attempt.stage, "attempt": attempt.number})
