"""The status of an endpoint: phase, message, three conditions, and the newest revisions."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from finetune_api.base import Condition, ConditionStatus
from finetune_api.modelendpoint import EndpointPhase, ModelEndpointStatus, RevisionStatus

from finetune_operator.decision import ENDPOINT_LABEL, REVISION_LABEL, EventRecord
from finetune_operator.endpoints import pods
from finetune_operator.endpoints.failure import RevisionFailure
from finetune_operator.endpoints.observe import Observed, Revision
from finetune_operator.manifest import format_time, has_pod_ended, merge_conditions
from finetune_operator.resources.endpoint_service import build_url
from finetune_operator.stalled import Stalled

KEPT_REVISIONS = 10
MESSAGE_LIMIT = 1000
"""Characters of a message in the status."""
RETRY_TEXT = 200
"""Characters of it that are left for the text around the reason of a failure."""


@dataclass(frozen=True)
class Rollout:
    """What a plan has decided."""

    active: Revision | None
    """The revision that takes the traffic from now on."""
    target: RevisionStatus | None
    """The record of the revision that the endpoint requires; None while it cannot be created."""
    problem: Stalled | RevisionFailure | None
    """What the roll-out waits for, or why it failed."""
    records: Mapping[int, RevisionStatus]
    is_kserve: bool
    """Whether KServe runs the active revision, or the target if none is active."""


def build_status(observed: Observed, rollout: Rollout, now: datetime) -> ModelEndpointStatus:
    """The whole status; equal input gives an equal status, times included."""
    active = rollout.active
    ready = len(pods.select_ready(active.pods)) if active else 0
    message = pods.shorten(_build_message(observed, rollout, ready), MESSAGE_LIMIT)
    return ModelEndpointStatus(
        observed_generation=observed.generation,
        phase=_choose_phase(rollout, ready),
        message=message,
        conditions=_build_conditions(observed, rollout, ready, message, now),
        runtime="KServe" if rollout.is_kserve else "Deployment",
        url=build_url(observed.namespace, observed.name) if active else None,
        latest=observed.latest,
        active_revision=active.number if active else None,
        replicas=sum(not has_pod_ended(pod) for pod in active.pods) if active else 0,
        selector=_build_selector(observed.name, active.number) if active else None,
        revisions=_select_newest(rollout.records, active.number if active else None),
    )


def _build_selector(name: str, number: int) -> str:
    """The pods of a revision, for a HorizontalPodAutoscaler."""
    return f"{ENDPOINT_LABEL}={name},{REVISION_LABEL}={number}"


def build_stalled_status(
    generation: int, old: ModelEndpointStatus, why: Stalled, now: datetime
) -> ModelEndpointStatus:
    """The status of an endpoint that the operator cannot reconcile: the roll-out stays as it is."""
    message = pods.shorten(why.message, MESSAGE_LIMIT)
    desired: dict[str, tuple[ConditionStatus, str, str]] = {
        "Reconciling": ("False", why.reason, message),
        "Stalled": ("True", why.reason, message),
    }
    if not any(each.type == "Ready" for each in old.conditions):
        desired["Ready"] = ("False", why.reason, message)
    kept = [each for each in old.conditions if each.type not in desired]
    merged = merge_conditions(old.conditions, desired, generation, format_time(now))
    conditions = [*kept, *merged]
    update = {
        "observed_generation": generation,
        "message": message,
        "conditions": sorted(conditions, key=lambda each: each.type),
    }
    return old.model_copy(update=update)


def list_events(old: ModelEndpointStatus, new: ModelEndpointStatus) -> tuple[EventRecord, ...]:
    """What happened between two statuses, for `kubectl describe`."""
    before = {each.revision: each.state for each in old.revisions}
    events = [
        event
        for each in new.revisions
        if before.get(each.revision) != each.state and (event := _build_revision_event(each))
    ]
    stalled, was = _find_stall(new), _find_stall(old)
    is_new = stalled is not None and (was is None or was.reason != stalled.reason)
    if stalled and is_new and not any(each.type == "Warning" for each in events):
        events.append(EventRecord("Warning", stalled.reason, stalled.message))
    return tuple(events)


def _build_revision_event(record: RevisionStatus) -> EventRecord | None:
    name = f"revision {record.revision}"
    if record.state == "Starting":
        return EventRecord("Normal", "RevisionStarting", f"{name} of {record.uri} is starting")
    if record.state == "Active":
        return EventRecord("Normal", "RevisionActive", f"{name} takes the traffic")
    if record.state == "Failed":
        text = f"{name} failed: {_describe_failure(record)}"
        return EventRecord("Warning", "RevisionFailed", text)
    return None


def _choose_phase(rollout: Rollout, ready: int) -> EndpointPhase:
    if rollout.active is not None:
        return "Ready" if ready else "Deploying"
    if rollout.target is None:
        return "Pending"
    has_failed = rollout.target.state == "Failed" and not _is_temporary(rollout.problem)
    return "Failed" if has_failed else "Deploying"


def _is_temporary(problem: Stalled | RevisionFailure | None) -> bool:
    """Whether the roll-out continues by itself in spite of it."""
    if isinstance(problem, RevisionFailure):
        return problem.is_retried
    return problem is not None and problem.is_expected


def _build_message(observed: Observed, rollout: Rollout, ready: int) -> str:
    active, target = rollout.active, rollout.target
    parts = []
    if active is not None:
        size = f"{ready} of {observed.spec.replicas} pods"
        parts.append(f"revision {active.number} " + (f"answers on {size}" if ready else "is down"))
    if target is None:
        parts.append(rollout.problem.message if rollout.problem else "")
    elif active is None or target.revision != active.number:
        parts.append(_describe_target(target))
    elif rollout.problem is not None:
        parts.append(rollout.problem.message)
    return "; ".join(part for part in parts if part)


def _describe_target(target: RevisionStatus) -> str:
    verbs = {"Starting": "is starting", "Checking": "is being checked", "Failed": "failed"}
    verb = verbs.get(target.state, target.state)
    message = _describe_failure(target) if target.state == "Failed" else target.message
    return f"revision {target.revision} {verb}" + (f": {message}" if message else "")


def _describe_failure(record: RevisionStatus) -> str:
    """Why a revision failed, how often its content did, and when it is tried again."""
    parts = [pods.shorten(record.message or "", MESSAGE_LIMIT - RETRY_TEXT)]
    if record.failed_before:
        parts.append(f"{record.failed_before + 1} failures in a row")
    if record.retry_at:
        parts.append(f"next try at {record.retry_at}")
    return "; ".join(part for part in parts if part)


def _build_conditions(
    observed: Observed, rollout: Rollout, ready: int, message: str, now: datetime
) -> list[Condition]:
    active, target, problem = rollout.active, rollout.target, rollout.problem
    is_settled = bool(
        active and target and target.revision == active.number and ready >= observed.spec.replicas
    )
    is_temporary = _is_temporary(problem)
    is_moving = not is_settled and (problem is None or is_temporary)
    is_ready: ConditionStatus = "True" if active and ready else "False"
    reason = "RevisionActive" if ready else "PodsNotReady"
    if active is None:
        reason = problem.reason if problem else "NoActiveRevision"
    desired: dict[str, tuple[ConditionStatus, str, str]] = {
        "Ready": (is_ready, reason, message),
        "Reconciling": ("False", "Settled", ""),
        "Stalled": ("False", "Clear", ""),
    }
    if is_moving:
        desired["Reconciling"] = ("True", problem.reason if problem else "RollingOut", message)
    elif problem is not None and not is_temporary:
        desired["Stalled"] = ("True", problem.reason, problem.message)
    return merge_conditions(
        observed.status.conditions, desired, observed.generation, format_time(now)
    )


def _select_newest(
    records: Mapping[int, RevisionStatus], active: int | None
) -> list[RevisionStatus]:
    """The newest records by number, and always the active one."""
    numbers = sorted(records)
    while len(numbers) > KEPT_REVISIONS:
        numbers.remove(next(each for each in numbers if each != active))
    return [records[number] for number in numbers]


def _find_stall(status: ModelEndpointStatus) -> Condition | None:
    """The condition Stalled where it is True."""
    found = (e for e in status.conditions if e.type == "Stalled" and e.status == "True")
    return next(found, None)
