"""What a job reports: conditions, and the Kubernetes events between two statuses.

Conditions exist from the first write and are read by kstatus and `kubectl wait`. Succeeded is
Unknown until the end. Reconciling and Stalled follow kstatus: both False means that the job rests;
a failed job is Stalled, because no controller makes progress with it any more. They are never True
at once.
"""

from collections.abc import Iterator, Mapping, Sequence

from finetune_api.base import Condition, ConditionStatus
from finetune_api.finetunejob import FineTuneJobStatus, StageStatus
from finetune_api.protocol import StageName

from finetune_operator.decision import EventRecord
from finetune_operator.jobs.draft import MESSAGE_LIMIT, Draft
from finetune_operator.jobs.policies.node_exclusion import list_excluded_nodes
from finetune_operator.jobs.suspend import SUSPENDED
from finetune_operator.manifest import merge_conditions
from finetune_operator.stalled import Stalled

STAGE_CONDITIONS: Mapping[StageName, str] = {
    "prepare": "Prepared",
    "train": "Trained",
    "evaluate": "Evaluated",
    "export": "Exported",
    "serve": "Deployed",
}
EVENT_LIMIT = 1000
"""Characters of an event's message."""

Desired = tuple[str, ConditionStatus, str, str]
"""Type, status, reason, message."""


def job_conditions(
    status: FineTuneJobStatus, stalled: Stalled | None, generation: int, timestamp: str
) -> list[Condition]:
    """Every condition for this status. Its last transition is now only where its own status has
    changed."""
    desired = [
        *_build_overall_conditions(status, stalled),
        _build_suspended_condition(status),
        *(_build_stage_condition(status, stage) for stage in status.stages),
    ]
    by_type = {
        kind: (value, reason, message[:MESSAGE_LIMIT]) for kind, value, reason, message in desired
    }
    return merge_conditions(status.conditions, by_type, generation, timestamp)


def _build_overall_conditions(
    status: FineTuneJobStatus, stalled: Stalled | None
) -> Sequence[Desired]:
    phase, message = status.phase, status.message
    if phase == "Succeeded":
        return (
            ("Succeeded", "True", "Succeeded", message),
            ("Reconciling", "False", "Succeeded", ""),
            ("Stalled", "False", "Succeeded", ""),
        )
    if phase == "Suspended":
        return (
            ("Succeeded", "Unknown", phase, message),
            ("Reconciling", "False", phase, message),
            ("Stalled", "False", phase, ""),
        )
    if phase == "Failed":
        reason = status.failure.reason if status.failure else "Failed"
        return (
            ("Succeeded", "False", reason, message),
            ("Reconciling", "False", reason, ""),
            ("Stalled", "True", reason, message),
        )
    if stalled is not None and not stalled.is_expected:
        return (
            ("Succeeded", "Unknown", phase, message),
            ("Reconciling", "False", stalled.reason, message),
            ("Stalled", "True", stalled.reason, stalled.message),
        )
    return (
        ("Succeeded", "Unknown", phase, message),
        ("Reconciling", "True", stalled.reason if stalled else phase, message),
        ("Stalled", "False", "Progressing", ""),
    )


def _build_suspended_condition(status: FineTuneJobStatus) -> Desired:
    """As batch/v1 Jobs have it, for `kubectl wait`."""
    if status.phase == "Suspended":
        return ("Suspended", "True", "Suspended", status.message)
    return ("Suspended", "False", status.phase, "")


def _build_stage_condition(status: FineTuneJobStatus, stage: StageStatus) -> Desired:
    value: ConditionStatus = "True" if stage.state == "Succeeded" else "False"
    reason: str = stage.state
    if stage.state == "Failed" and status.failure:
        reason = status.failure.reason
    return (STAGE_CONDITIONS[stage.name], value, reason, stage.message or "")


def job_events(before: FineTuneJobStatus, draft: Draft) -> Iterator[EventRecord]:
    """The events between two statuses."""
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
    for node in after.nodes:
        if node.excluded and node.name not in list_excluded_nodes(before.nodes):
            attempts = f"{node.failures} attempt{'s' if node.failures > 1 else ''}"
            text = f"{attempts} ended because of node {node.name}; the next ones "
            yield EventRecord("Warning", "NodeExcluded", text + "run elsewhere")
    old = next((each for each in before.conditions if each.type == "Stalled"), None)
    was_stalled_by = old.reason if old and old.status == "True" else None
    if stalled and not stalled.is_expected and stalled.reason != was_stalled_by:
        yield EventRecord("Warning", stalled.reason, stalled.message[:EVENT_LIMIT])
