"""What happened to an attempt, in the line that `kubectl get` shows."""

from finetune_api.run import Failure, StageName

from finetune_operator.jobs.attempt_outcome import Outcome
from finetune_operator.jobs.draft import Draft
from finetune_operator.jobs.observe import Attempt
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
"""Endings that are nobody's error; all others are told with their own message."""


def at_step(draft: Draft, stage: StageName) -> str:
    """How far training was, where that is known."""
    progress = draft.status.progress
    if stage != "train" or progress is None or progress.stage != "train" or not progress.step:
        return ""
    return f" at step {progress.step}"


def from_where(draft: Draft, stage: StageName) -> str:
    """Where the next attempt begins."""
    checkpoint = draft.status.checkpoint
    if stage != "train" or checkpoint is None:
        return "starts over"
    return f"resumes from step {checkpoint.step}"


def starting(draft: Draft, stage: StageName, number: int) -> str:
    """That an attempt starts, and with what if it is not the first."""
    again = f", attempt {number}, {from_where(draft, stage)}" if number > 1 else ""
    return f"{stage} is starting{again}"


def waits_for(attempt: Attempt) -> str:
    """Which pod holds up an attempt that is stopping, and for how long at most: on a node that has
    died meanwhile it takes all of that."""
    ending = [(p.deadline, p.name, p.node) for p in attempt.pods if p.deadline and not p.finished]
    if not ending:
        return ""
    deadline, name, node = max(ending)
    where = f" on node {node}" if node else ""
    return f"; pod {name}{where} has until {format_time(deadline)}"


def retry_text(draft: Draft, stage: StageName, over: Outcome, most: int) -> str:
    """Why an attempt is tried again, and from where."""
    failure = over.failure
    assert failure is not None
    next_step = from_where(draft, stage)
    if over.kind != "Crashed" and failure.reason in PLAIN:
        return f"{stage} {_plain(failure)}{at_step(draft, stage)}, {next_step}"
    message = failure.message.rstrip(".")
    text = f"{stage} attempt {failure.attempt} ended{at_step(draft, stage)}: {message}"
    if over.kind == "Crashed":
        text += f"; restart {draft.status.restarts} of {most}"
    return f"{text}; {next_step}"[:4096]


def _plain(failure: Failure) -> str:
    return PLAIN[failure.reason]
