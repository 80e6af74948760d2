"""The line that `kubectl get` shows: what an attempt does, and what happened to it."""

from finetune_api.finetunejob import FineTuneJobStatus
from finetune_api.protocol import StageName

from finetune_operator.jobs.attempt_outcome import FailedAttempt
from finetune_operator.jobs.draft import MESSAGE_LIMIT
from finetune_operator.jobs.observe import Attempt
from finetune_operator.jobs.policies.suspect_node import MOST_NAMES, is_suspected
from finetune_operator.jobs.stall_checks import describe_held_job
from finetune_operator.manifest import format_time

PLAIN = {
    "Preempted": "was preempted",
    "EvictionByEvictionAPI": "was evicted",
    "PreemptionByScheduler": "was preempted by a pod of higher priority",
    "NodeShutdown": "was stopped by the shutdown of its node",
    "DeletionByTaintManager": "lost a node",
    "PodDeleted": "lost a pod that was deleted",
    "JobDeleted": "lost its Job, which was deleted",
    "Suspended": "was suspended",
}
"""Reasons that are not an error of the job; a failure with any other reason has its own message."""


def format_step(status: FineTuneJobStatus, stage: StageName) -> str:
    """The step that training has reached, where that is known."""
    progress = status.progress
    if stage != "train" or progress is None or progress.stage != "train" or not progress.step:
        return ""
    return f" at step {progress.step}"


def format_resume_point(status: FineTuneJobStatus, stage: StageName) -> str:
    """Where the next attempt begins."""
    if stage != "train" or status.checkpoint is None:
        return "starts over"
    return f"resumes from step {status.checkpoint.step}"


def format_attempt(status: FineTuneJobStatus, stage: StageName, number: int) -> str:
    """The number of a later attempt and where it begins."""
    return f", attempt {number}, {format_resume_point(status, stage)}"


def format_slowest_pod(attempt: Attempt) -> str:
    """Which pod delays an attempt that is stopping, and until when at most: if its node has died,
    the API server keeps the pod until then."""
    stopping = [
        (p.deadline, p.name, p.node) for p in attempt.pods if p.deadline and not p.has_ended
    ]
    if not stopping:
        return ""
    deadline, name, node = max(stopping)
    where = f" on node {node}" if node else ""
    return f"; pod {name}{where} has until {format_time(deadline)}"


def running_message(status: FineTuneJobStatus, attempt: Attempt) -> str:
    """What an attempt does, as far as its pods show it."""
    stage = attempt.stage
    if attempt.is_held:
        return describe_held_job(attempt)
    running = sum(pod.phase == "Running" for pod in attempt.pods)
    if any(pod.deadline is not None for pod in attempt.pods):
        return f"{stage} is stopping{format_slowest_pod(attempt)}"
    if running == attempt.nodes:
        plan = attempt.config.plan if attempt.config and stage == "train" else None
        if plan is None:
            return f"{stage} is running"
        devices = f"{plan.nodes} x {plan.gpus_per_node} {plan.device}"
        return f"{stage} is running on {devices} with {plan.strategy}"
    if ended := sum(pod.has_ended for pod in attempt.pods):
        return f"{stage} is ending: {ended} of {attempt.nodes} pods have ended"
    waiting = sorted({pod.waiting_reason for pod in attempt.pods if pod.waiting_reason})
    why = f" ({', '.join(waiting)})" if waiting else ""
    which = format_attempt(status, stage, attempt.number) if attempt.number > 1 else ""
    return f"{stage} is starting{which}: {running} of {attempt.nodes} pods run{why}"


def retry_message(
    status: FineTuneJobStatus, stage: StageName, outcome: FailedAttempt, max_restarts: int
) -> str:
    """Why an attempt is tried again, and from where."""
    failure = outcome.failure
    step, resume_point = format_step(status, stage), format_resume_point(status, stage)
    if outcome.kind != "Crashed" and failure.reason in PLAIN:
        return f"{stage} {PLAIN[failure.reason]}{step}, {resume_point}"
    text = f"{stage} attempt {failure.attempt} ended{step}: {failure.message.rstrip('.')}"
    if is_suspected(outcome):
        text += f"; {_format_suspicion(status)}"
    if outcome.kind == "Crashed":
        text += f"; restart {status.restarts} of {max_restarts}"
    return f"{text}; {resume_point}"[:MESSAGE_LIMIT]


def _format_suspicion(status: FineTuneJobStatus) -> str:
    if status.suspected and status.suspected.nodes:
        return "once more on another node, as a device can cause this"
    return (
        "once more, as a device can cause this; no node is avoided, as any of more than "
        f"{MOST_NAMES} may have caused it"
    )
