"""Conditions of a job, there from the first write and read by kstatus and kubectl wait.

Succeeded is Unknown until the end. Reconciling and Stalled follow kstatus: both False means that
the job rests; a failed job is Stalled, because nobody will bring it further.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

from finetune_api.base import Condition
from finetune_api.finetunejob import FineTuneJobStatus
from finetune_api.run import StageName

from finetune_operator.manifest import format_time
from finetune_operator.stalled import Stalled

STAGE_CONDITIONS: Mapping[StageName, str] = {
    "prepare": "Prepared",
    "train": "Trained",
    "evaluate": "Evaluated",
    "export": "Exported",
    "serve": "Deployed",
}
MESSAGE_LIMIT = 4096


def job_conditions(
    status: FineTuneJobStatus, stall: Stalled | None, generation: int, now: datetime
) -> list[Condition]:
    """Every condition for this status; times move only where a condition's status changed."""
    stages = (_stage(status, name) for name in _stages(status))
    wanted = [*_overall(status, stall), _suspended(status), *stages]
    return [_dated(w, status.conditions, generation, now) for w in wanted]


Wanted = tuple[str, str, str, str]
"""Type, status, reason, message."""


def _overall(status: FineTuneJobStatus, stall: Stalled | None) -> list[Wanted]:
    phase, message = status.phase, status.message
    if phase == "Succeeded":
        return [
            ("Succeeded", "True", "Succeeded", message),
            ("Reconciling", "False", "Succeeded", ""),
            ("Stalled", "False", "Succeeded", ""),
        ]
    if phase == "Suspended":
        return [
            ("Succeeded", "Unknown", phase, message),
            ("Reconciling", "False", phase, message),
            ("Stalled", "False", phase, ""),
        ]
    if phase == "Failed":
        reason = status.failure.reason if status.failure else "Failed"
        return [
            ("Succeeded", "False", reason, message),
            ("Reconciling", "False", reason, ""),
            ("Stalled", "True", reason, message),
        ]
    stalled = (
        ("Stalled", "True", stall.reason, stall.message)
        if stall
        else ("Stalled", "False", "Progressing", "")
    )
    return [
        ("Succeeded", "Unknown", phase, message),
        ("Reconciling", "True", phase, message),
        stalled,
    ]


def _suspended(status: FineTuneJobStatus) -> Wanted:
    """As batch/v1 Jobs have it, for `kubectl wait`."""
    if status.phase == "Suspended":
        return ("Suspended", "True", "Suspended", status.message)
    return ("Suspended", "False", status.phase, "")


def _stages(status: FineTuneJobStatus) -> Sequence[StageName]:
    return [stage.name for stage in status.stages]


def _stage(status: FineTuneJobStatus, name: StageName) -> Wanted:
    stage = next(s for s in status.stages if s.name == name)
    value = "True" if stage.state == "Succeeded" else "False"
    reason: str = stage.state
    if stage.state == "Failed" and status.failure:
        reason = status.failure.reason
    return (STAGE_CONDITIONS[name], value, reason, stage.message or "")


def _dated(
    wanted: Wanted, before: Sequence[Condition], generation: int, now: datetime
) -> Condition:
    kind, value, reason, message = wanted
    old = next((c for c in before if c.type == kind), None)
    since = old.last_transition_time if old and old.status == value else format_time(now)
    return Condition(
        type=kind,
        status=value,
        reason=reason,
        message=message[:MESSAGE_LIMIT],
        last_transition_time=since,
        observed_generation=generation,
    )
