"""The status of an endpoint: one word, one line, three conditions, and the newest revisions."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from finetune_api.base import Condition
from finetune_api.modelendpoint import EndpointPhase, ModelEndpointStatus, RevisionStatus

from finetune_operator.decision import EventRecord
from finetune_operator.endpoints import pods
from finetune_operator.endpoints.observe import Observed, Revision
from finetune_operator.manifest import format_time
from finetune_operator.resources.endpoint_service import build_url
from finetune_operator.stalled import Stalled

KEPT_REVISIONS = 10


@dataclass(frozen=True)
class Rollout:
    """What a plan has decided."""

    active: Revision | None
    """The revision that takes the traffic from now on."""
    target: RevisionStatus | None
    """The record of the wished revision; None while it cannot be made."""
    stalled: Stalled | None
    """What it waits for, or why it failed."""
    records: Mapping[int, RevisionStatus]
    kserve: bool
    """Whether KServe runs the active revision, or the wished one where none is active."""


def compose(observed: Observed, rollout: Rollout, now: datetime) -> ModelEndpointStatus:
    """The whole status; equal input gives an equal status, times included."""
    count = _ready_count(rollout.active)
    phase = _phase(rollout, count)
    message = pods.shorten(_message(observed, rollout, count), 1000)
    active = rollout.active
    return ModelEndpointStatus(
        observed_generation=observed.generation,
        phase=phase,
        message=message,
        conditions=_conditions(observed, rollout, count, message, now),
        runtime="KServe" if rollout.kserve else "Deployment",
        url=build_url(observed.namespace, observed.name) if active else None,
        active_revision=active.number if active else None,
        revisions=_newest(rollout.records, active.number if active else None),
    )


def halted(
    generation: int, old: ModelEndpointStatus, why: Stalled, now: datetime
) -> ModelEndpointStatus:
    """The status of an endpoint that cannot be worked on: all that runs is left alone."""
    why = Stalled(why.reason, pods.shorten(why.message, 1000))
    wanted = {
        "Reconciling": (False, why.reason, why.message),
        "Stalled": (True, why.reason, why.message),
    }
    if not any(each.type == "Ready" for each in old.conditions):
        wanted["Ready"] = (False, why.reason, why.message)
    kept = [each for each in old.conditions if each.type not in wanted]
    conditions = [*kept, *_merge(old.conditions, wanted, generation, now)]
    update = {
        "observed_generation": generation,
        "message": why.message,
        "conditions": sorted(conditions, key=lambda each: each.type),
    }
    return old.model_copy(update=update)


def events(old: ModelEndpointStatus, new: ModelEndpointStatus) -> tuple[EventRecord, ...]:
    """What has happened between two statuses, for `kubectl describe`."""
    before = {each.revision: each.state for each in old.revisions}
    out = [
        event
        for each in new.revisions
        if before.get(each.revision) != each.state and (event := _revision_event(each))
    ]
    stalled, was = _condition(new, "Stalled"), _condition(old, "Stalled")
    is_new = stalled.status == "True" and (was.status != "True" or was.reason != stalled.reason)
    if is_new and not any(each.type == "Warning" for each in out):
        out.append(EventRecord("Warning", stalled.reason, stalled.message))
    return tuple(out)


def _revision_event(record: RevisionStatus) -> EventRecord | None:
    name = f"revision {record.revision}"
    if record.state == "Starting":
        return EventRecord("Normal", "RevisionStarting", f"{name} of {record.uri} is started")
    if record.state == "Active":
        return EventRecord("Normal", "RevisionActive", f"{name} takes the traffic")
    if record.state == "Failed":
        return EventRecord("Warning", "RevisionFailed", f"{name} failed: {record.message}")
    return None


def _phase(rollout: Rollout, count: int) -> EndpointPhase:
    if rollout.active is not None:
        return "Ready" if count else "Deploying"
    if rollout.target is None:
        return "Pending"
    return "Failed" if rollout.target.state == "Failed" else "Deploying"


def _message(observed: Observed, rollout: Rollout, count: int) -> str:
    active, target = rollout.active, rollout.target
    parts = []
    if active is not None:
        size = f"{count} of {observed.spec.replicas} pods"
        parts.append(f"revision {active.number} " + (f"answers on {size}" if count else "is down"))
    if target is None:
        parts.append(rollout.stalled.message if rollout.stalled else "")
    elif active is None or target.revision != active.number:
        parts.append(_target_message(target))
    elif rollout.stalled is not None:
        parts.append(rollout.stalled.message)
    return "; ".join(part for part in parts if part)


def _target_message(target: RevisionStatus) -> str:
    words = {"Starting": "is starting", "Checking": "is being checked", "Failed": "failed"}
    verb = words.get(target.state, target.state)
    return f"revision {target.revision} {verb}" + (f": {target.message}" if target.message else "")


def _conditions(
    observed: Observed, rollout: Rollout, count: int, message: str, now: datetime
) -> list[Condition]:
    active, target, stalled = rollout.active, rollout.target, rollout.stalled
    settled = bool(
        active and target and target.revision == active.number and count >= observed.spec.replicas
    )
    moving = not settled and stalled is None
    ready = (True, "RevisionActive") if count else (False, "PodsNotReady")
    if active is None:
        ready = (False, stalled.reason if stalled else "NoActiveRevision")
    wanted = {
        "Ready": (*ready, message),
        "Reconciling": (moving, "RollingOut", message) if moving else (False, "Settled", ""),
        "Stalled": (True, stalled.reason, stalled.message) if stalled else (False, "Clear", ""),
    }
    return _merge(observed.status.conditions, wanted, observed.generation, now)


def _merge(
    old: Iterable[Condition],
    wanted: Mapping[str, tuple[bool, str, str]],
    generation: int,
    now: datetime,
) -> list[Condition]:
    before = {each.type: each for each in old}
    out = []
    for kind, (truth, reason, message) in wanted.items():
        state = "True" if truth else "False"
        last = before.get(kind)
        since = last.last_transition_time if last and last.status == state else format_time(now)
        out.append(
            Condition(
                type=kind,
                status=state,
                reason=reason,
                message=message,
                last_transition_time=since,
                observed_generation=generation,
            )
        )
    return out


def _newest(records: Mapping[int, RevisionStatus], active: int | None) -> list[RevisionStatus]:
    numbers = sorted(records)
    while len(numbers) > KEPT_REVISIONS:
        numbers.remove(next(each for each in numbers if each != active))
    return [records[number] for number in numbers]


def _ready_count(active: Revision | None) -> int:
    return len(pods.ready(active.pods)) if active else 0


def _condition(status: ModelEndpointStatus, kind: str) -> Condition:
    absent = Condition(type=kind, status="Unknown", reason="", last_transition_time="")
    return next((each for each in status.conditions if each.type == kind), absent)
