"""How an attempt ended, judged by its pods as soon as they end.

A gang ends together, so most of its pods fail because another one did. The first thing that went
wrong is the cause: a rank that was killed and whose peers then lost their connection is not a
crash, and ranks that saved a checkpoint because a peer ran out of memory were not preempted. An
error of the user is one on whichever pod it was found.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from finetune_api.failure import Failure
from finetune_api.protocol import ExitCode, StageName
from finetune_api.stage_result import StageResult

from finetune_operator.jobs.observe import KILL_SLACK, Attempt, PodFacts
from finetune_operator.jobs.stages.base import Accepted
from finetune_operator.resources.resource_requirements import MORE_HOST_MEMORY, MORE_POOL_MEMORY

DEVICE_STAGES: tuple[StageName, ...] = ("train", "evaluate")
FailureKind = Literal["UserError", "Crashed", "Disrupted", "Preempted"]
CAUSE_RANK = {"Disrupted": 0, "Crashed": 1, "Preempted": 2}
"""Which of two causes in the same second came first; the API server counts in seconds."""
PEER_LOST = "PeerLost"
"""Reason of a rank that lost the connection to another one: a consequence, not a cause."""
FENCED = frozenset({"Fenced", "AttemptAlreadyClaimed"})
"""Reasons of an attempt that found another one at work: nothing is wrong with the job."""
NO_PEER = frozenset({"RendezvousFailed", "RendezvousTimeout"})
"""Reasons of a rank that did not find the others; no fault of the job where one never ran."""
PEER_PATIENCE = timedelta(seconds=30)
"""Time in which the kubelet of the other rank, or its node's lifecycle controller, reports what
happened."""
CLOCK_SLACK = timedelta(minutes=1)
"""Difference up to which times of kubelets are taken as they are, to find out what came first."""
JOB_DELETED = "JobDeleted"
REFUSED = "RefusedByNode"
"""Reason of a pod that was scheduled and never ran, as for a device that its node does not have."""
CACHE_SLACK = timedelta(seconds=5)
"""Time in which the pods of a finished Job may still be missing from the cache."""

Accept = Callable[[StageResult], Accepted | None]
"""What the attempt's stage makes of a result."""


@dataclass(frozen=True)
class SucceededAttempt:
    """Every pod succeeded, and the stage accepted the result."""

    at: datetime
    accepted: Accepted


@dataclass(frozen=True)
class FailedAttempt:
    """Why and when an attempt ended without success."""

    kind: FailureKind
    at: datetime
    failure: Failure
    """With its stage and attempt."""
    pod: PodFacts | None = None
    """The pod that was the cause, where it was one."""
    accepted: Accepted | None = None
    """Facts that came with an error of the user; they stay in the status."""


Outcome = SucceededAttempt | FailedAttempt


def outcome_of(attempt: Attempt, now: datetime, accept: Accept) -> Outcome | None:
    """How the attempt ended; None while it runs, or while the cause is not certain."""
    outcome = (
        _find_user_error(attempt, now, accept)
        or _find_success(attempt, now, accept)
        or _find_lost_node(attempt, now)
    )
    if outcome is not None:
        return outcome
    cause = _find_cause(attempt, now)
    if cause is not None and cause.kind == "Crashed":
        return cause
    if any(_may_still_report(pod, now) for pod in attempt.pods):
        return None
    return cause or _find_missing(attempt, now)


def fail_attempt(
    attempt: Attempt,
    kind: FailureKind,
    at: datetime,
    failure: Failure,
    pod: PodFacts | None = None,
    accepted: Accepted | None = None,
) -> FailedAttempt:
    """The outcome of an attempt that ended by this failure, or that the operator gives up."""
    located = failure.model_copy(update={"stage": attempt.stage, "attempt": attempt.number})
    return FailedAttempt(kind, at, located, pod, accepted)


def _find_user_error(attempt: Attempt, now: datetime, accept: Accept) -> FailedAttempt | None:
    for pod in attempt.pods:
        if pod.exit_code == ExitCode.USER_ERROR:
            reported = pod.result.failure if pod.result else None
            failure = reported or _infer_failure(attempt, pod)
            accepted = accept(pod.result) if pod.result else None
            if accepted and accepted.refusal:
                # The pod's may be cut to fit into a termination message.
                failure = accepted.refusal
            return fail_attempt(attempt, "UserError", _end_time(pod, now), failure, pod, accepted)
    return None


def _find_success(attempt: Attempt, now: datetime, accept: Accept) -> Outcome | None:
    """Success, or NoResult where every pod succeeded and the result lacks the stage's facts."""
    if len(attempt.pods) < attempt.nodes:
        return None
    if any(pod.phase != "Succeeded" for pod in attempt.pods):
        return None
    at = max(_end_time(pod, now) for pod in attempt.pods)
    leader = attempt.leader()
    result = leader.result if leader else None
    if result is not None and result.outcome == "Succeeded" and result.stage == attempt.stage:
        accepted = accept(result)
        if accepted is not None:
            return SucceededAttempt(at, accepted)
        message = f"{attempt.stage} ended without the facts that the next stage needs"
    else:
        message = f"pod {leader.name if leader else attempt.stage} ended without a readable result"
    return fail_attempt(attempt, "Crashed", at, Failure(reason="NoResult", message=message))


def _find_lost_node(attempt: Attempt, now: datetime) -> FailedAttempt | None:
    """A pod on a dead node never ends, and its peers cannot continue without it."""
    for pod in attempt.pods:
        if pod.disruption and pod.disruption.is_node_lost and not pod.has_ended:
            return _fail_disrupted(attempt, pod, now)
    return None


def _may_still_report(pod: PodFacts, now: datetime) -> bool:
    """Whether the pod is being deleted and its grace period is not over."""
    return pod.deadline is not None and not pod.has_ended and now < pod.deadline + KILL_SLACK


def _find_cause(attempt: Attempt, now: datetime) -> FailedAttempt | None:
    """The earliest cause. Where a rank lost its peer, the peer gets time to report its own."""
    causes = sorted(_list_causes(attempt, now), key=lambda each: (each.at, CAUSE_RANK[each.kind]))
    causes = [each for each in causes if not _is_end_of_job(each, attempt)] or causes
    consequences = [cause for cause in causes if _is_consequence(cause)]
    if not consequences:
        return causes[0] if causes else None
    first = consequences[0]
    reported = [
        cause
        for cause in causes
        if not _is_consequence(cause) and (cause.kind != "Preempted" or cause.at < first.at)
    ]
    if reported:
        return reported[0]
    if len(attempt.pods) < attempt.nodes:
        # The missing pod had not failed: a Job deletes only pods that are active.
        return _fail_missing_pod(attempt, first.at)
    is_silent = any(not pod.has_ended for pod in attempt.pods)
    return None if is_silent and now < first.at + PEER_PATIENCE else first


def _is_end_of_job(cause: FailedAttempt, attempt: Attempt) -> bool:
    """Whether the Job controller deleted the pod because another one had failed. Both times are
    those of the control plane: a kubelet whose clock is ahead reports the failure as the later."""
    failed_at, pod = attempt.job_failed_at(), cause.pod
    if failed_at is None or cause.kind != "Preempted" or pod is None:
        return False
    return pod.deleted_at is not None and pod.deleted_at >= failed_at


def _is_consequence(cause: FailedAttempt) -> bool:
    return cause.failure.reason == PEER_LOST


def _list_causes(attempt: Attempt, now: datetime) -> Iterator[FailedAttempt]:
    for pod in attempt.pods:
        if pod.disruption is not None and pod.disruption.is_own_doing and pod.phase == "Failed":
            failure = _eviction_failure(pod, pod.disruption.message)
            yield fail_attempt(attempt, "Crashed", _disruption_time(pod, now), failure, pod)
        elif pod.disruption is not None and (pod.has_ended or pod.deadline is not None):
            yield _fail_disrupted(attempt, pod, now)
        elif pod.phase == "Failed" and pod.exit_code == ExitCode.PREEMPTED:
            failure = Failure(reason="Preempted", message=f"pod {pod.name} was asked to stop")
            at = pod.deleted_at or _end_time(pod, now)
            yield fail_attempt(attempt, "Preempted", at, failure, pod)
        elif pod.deleted_at is not None and pod.phase != "Succeeded":
            failure = Failure(reason="PodDeleted", message=_deletion_message(pod))
            yield fail_attempt(attempt, "Preempted", pod.deleted_at, failure, pod)
        elif pod.phase == "Failed":
            failure = _reported_failure(attempt, pod)
            kind: FailureKind = "Disrupted" if failure.reason in FENCED else "Crashed"
            if failure.reason in NO_PEER and (absent := _describe_absent_peer(attempt)):
                kind = "Disrupted"
                failure = failure.with_message(f"{failure.message.rstrip('.')}; {absent}")
            yield fail_attempt(attempt, kind, _end_time(pod, now), failure, pod)


def _find_missing(attempt: Attempt, now: datetime) -> FailedAttempt | None:
    """The Job is finished or missing, and so are the pods that would report why."""
    if attempt.job is None:
        if any(not pod.has_ended and pod.deadline is None for pod in attempt.pods):
            return None
        message = f"the Job of {attempt.stage} {attempt.number} was deleted"
        failure = Failure(reason=JOB_DELETED, message=message)
        return fail_attempt(attempt, "Disrupted", now, failure)
    end = attempt.job_end()
    if end is None or len(attempt.pods) >= attempt.nodes or now < end + CACHE_SLACK:
        return None
    return _fail_missing_pod(attempt, end)


def _fail_missing_pod(attempt: Attempt, at: datetime) -> FailedAttempt:
    what = f"a pod of {attempt.stage} attempt {attempt.number}"
    message = f"{what} was deleted before its end was seen"
    return fail_attempt(attempt, "Disrupted", at, Failure(reason="PodDeleted", message=message))


def _fail_disrupted(attempt: Attempt, pod: PodFacts, now: datetime) -> FailedAttempt:
    disruption = pod.disruption
    detail = f": {disruption.message}" if disruption and disruption.message else ""
    reason = disruption.reason if disruption else "Disrupted"
    failure = Failure(reason=reason, message=f"pod {pod.name} was disrupted{detail}")
    return fail_attempt(attempt, "Disrupted", _disruption_time(pod, now), failure, pod)


def _disruption_time(pod: PodFacts, now: datetime) -> datetime:
    """The kubelet may have written this time too, so it is checked in the same way."""
    at = pod.disruption.at if pod.disruption else None
    return _plausible_time(at, pod, now) if at else _end_time(pod, now)


def _end_time(pod: PodFacts, now: datetime) -> datetime:
    """A pod that the kubelet refused never ran, so its end is the time of its creation."""
    return _plausible_time(pod.finished_at or pod.created_at or now, pod, now)


def _plausible_time(at: datetime, pod: PodFacts, now: datetime) -> datetime:
    """A kubelet's clock may be years off: an end before the pod's creation, or later than now,
    counts as now."""
    return at if (pod.created_at or at) - CLOCK_SLACK <= at <= now + CLOCK_SLACK else now


def _reported_failure(attempt: Attempt, pod: PodFacts) -> Failure:
    """The failure in the pod's termination message, unless the kubelet reports a better one: a
    first process that outlived the kill of a rank cannot report the reason."""
    failure = pod.result.failure if pod.result else None
    if failure is None or (failure.reason == "RankFailed" and pod.exit_reason == "OOMKilled"):
        return _infer_failure(attempt, pod)
    return failure


def _describe_absent_peer(attempt: Attempt) -> str:
    """Why a rank did not find its peer: it has no node yet, waits for its image, or does not exist,
    as the Job controller deletes pods that wait when one has failed. Empty where all have run."""
    absent = next((each for each in attempt.pods if each.phase == "Pending"), None)
    if absent is not None:
        why = absent.unscheduled_message or absent.waiting_message or absent.waiting_reason
        return f"pod {absent.name} has not started" + (f": {why}" if why else "")
    if len(attempt.pods) < attempt.nodes:
        return f"only {len(attempt.pods)} of {attempt.nodes} pods exist"
    return ""


def _deletion_message(pod: PodFacts) -> str:
    failure = pod.result.failure if pod.result else None
    saved = f" and could not save its work: {failure.message}" if failure else ""
    return f"pod {pod.name} was deleted{saved}"


def _eviction_failure(pod: PodFacts, message: str) -> Failure:
    """The kubelet evicted the pod for what it used itself; another node would not change that."""
    return Failure(
        reason="Evicted",
        message=f"pod {pod.name} was evicted for what it used itself: {message}",
        remedy="raise sharedMemory in the AcceleratorProfile" if '"shm"' in message else None,
    )


def _infer_failure(attempt: Attempt, pod: PodFacts) -> Failure:
    """The failure of a pod that left no result, as far as the kubelet's status shows it."""
    if pod.exit_reason == "OOMKilled":
        return Failure(
            reason="OutOfHostMemory",
            message=f"pod {pod.name} was killed for using more host memory than it may",
            remedy=MORE_POOL_MEMORY if attempt.stage in DEVICE_STAGES else MORE_HOST_MEMORY,
        )
    if pod.refusal:
        return Failure(
            reason=REFUSED,
            message=f"node {pod.node} did not run pod {pod.name}: {pod.refusal}",
            remedy=f"kubectl describe node {pod.node}",
        )
    code = "no exit code" if pod.exit_code is None else f"exit code {pod.exit_code}"
    return Failure(
        reason="Crashed",
        message=f"pod {pod.name} ended with {code} and left no result",
        remedy=f"kubectl logs {pod.name}",
    )
