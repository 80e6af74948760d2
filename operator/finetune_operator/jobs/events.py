"""Kubernetes events of a job: what its new status says that the one before did not."""

from collections.abc import Iterator

from finetune_api.finetunejob import FineTuneJobStatus

from finetune_operator.decision import EventRecord
from finetune_operator.jobs.draft import Draft
from finetune_operator.jobs.suspend import SUSPENDED

EVENT_LIMIT = 1000
"""Characters of a message."""


def job_events(before: FineTuneJobStatus, draft: Draft) -> Iterator[EventRecord]:
    """The events between two statuses, in the order in which they happened."""
    after, failure, stalled = draft.status, draft.status.failure, draft.stalled
    if after.plan is not None and before.plan is None:
        yield EventRecord("Normal", "Planned", after.plan.reason[:EVENT_LIMIT])
    if before.suspended_at and not after.suspended_at and not draft.has_ended:
        yield EventRecord("Normal", "Resumed", after.message[:EVENT_LIMIT])
    is_new = failure != before.failure and after.phase != "Failed"
    if failure is not None and is_new and failure.reason != SUSPENDED:
        text = f"{failure.stage} attempt {failure.attempt} ended: {failure.message}"
        yield EventRecord("Warning", failure.reason, text[:EVENT_LIMIT])
    if after.phase != before.phase or not before.conditions:
        message = after.message[:EVENT_LIMIT]
        if after.phase == "Failed" and failure is not None:
            yield EventRecord("Warning", failure.reason, message)
        else:
            yield EventRecord("Normal", after.phase, message)
    excluded = {node.name for node in before.nodes if node.excluded}
    for node in after.nodes:
        if node.excluded and node.name not in excluded:
            text = f"{node.failures} attempts ended because of node {node.name}; the next ones "
            yield EventRecord("Warning", "NodeExcluded", text + "run elsewhere")
    old = next((each for each in before.conditions if each.type == "Stalled"), None)
    was_stalled_by = old.reason if old and old.status == "True" else None
    if stalled is not None and stalled.reason != was_stalled_by:
        yield EventRecord("Warning", stalled.reason, stalled.message[:EVENT_LIMIT])
