"""ModelEndpoint: what to do next. `reconcile_endpoint` is the table of contents of an endpoint.

The operator starts a new revision alongside the active one, checks it, and only then switches the
traffic to it. The predecessor stays for a short while, until open connections have ended. A
revision that fails is deleted and never takes traffic.

The operator deletes nothing before the status records why: after a crash between two writes it can
then only repeat a step, never forget the reason for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from finetune_api.modelendpoint import ModelEndpointStatus, RevisionStatus
from pydantic import ValidationError

from finetune_operator.decision import Decision, EventRecord, Manifest, ObjectRef, Settings, View
from finetune_operator.endpoints import pods, workload
from finetune_operator.endpoints.failure import RevisionFailure
from finetune_operator.endpoints.observe import (
    Observed,
    Revision,
    observe,
    parse_artifact,
    parse_revision_number,
)
from finetune_operator.endpoints.revision_state import Assessment, assess_revision
from finetune_operator.endpoints.revisions import (
    NewRevision,
    build_served_revision,
    choose_revision,
)
from finetune_operator.endpoints.status import (
    Rollout,
    build_stalled_status,
    build_status,
    list_events,
)
from finetune_operator.manifest import format_time, object_ref, parse_time
from finetune_operator.resources import deployment, endpoint_service, inferenceservice
from finetune_operator.resources.servingruntime import build_serving_runtime
from finetune_operator.resources.vllm import revision_name
from finetune_operator.stalled import Stalled
from finetune_operator.workspaces.plan import RECHECK as JANITOR_RECHECK
from finetune_operator.workspaces.plan import check_janitor

RETIRE_AFTER = timedelta(seconds=30)
"""How long a revision keeps running after its successor has taken the traffic."""


@dataclass(frozen=True)
class _Target:
    """The revision that the spec requires, and its state."""

    revision: Revision | None
    """None while the operator cannot create it."""
    assessment: Assessment
    create: tuple[Manifest, ...] = ()


@dataclass(frozen=True)
class _ServiceWrites:
    """What makes the endpoint's Service select the active revision."""

    create: tuple[Manifest, ...] = ()
    apply: tuple[Manifest, ...] = ()


@dataclass(frozen=True)
class _Removal:
    """The children that are deleted now, and the time until the next ones are due."""

    delete: tuple[ObjectRef, ...]
    next_in: float | None
    """Seconds; None if no more are due."""


def reconcile_endpoint(
    endpoint: Manifest, view: View, settings: Settings, now: datetime
) -> Decision:
    """What an endpoint needs now; `now` must be timezone-aware, in UTC."""
    if endpoint["metadata"].get("deletionTimestamp"):
        return Decision()  # the children go with their owner
    try:
        observed = observe(endpoint, view)
    except ValidationError as error:
        return _refuse_spec(endpoint, error, now)

    # The target: the revision that the spec or the latest job requires, how far it is, and its
    # missing children.
    target = _advance_target(observed, view, settings, now)

    # The active revision: the target as soon as it has passed its checks.
    active = target.revision if target.assessment.state == "Active" else observed.active
    restored = _restore_children(observed, active, settings)
    service = _route_traffic(observed, active)

    # What the status records: every revision with its state, and what the roll-out waits for.
    records = _update_records(observed, target, active, now)
    problem = target.assessment.problem or (
        restored
        if isinstance(restored, Stalled)
        else _find_active_stall(observed, active, settings, now)
    )
    rollout = Rollout(
        active=active,
        target=records.get(target.revision.number) if target.revision else None,
        problem=problem,
        records=records,
        is_kserve=_uses_kserve(observed, active or target.revision),
    )
    status = build_status(observed, rollout, now)

    # Children that the status has recorded as failed or retired.
    removal = _remove_children(observed, target, records, active, now)

    waits = [removal.next_in, target.assessment.requeue_after]
    if isinstance(problem, Stalled) and problem.patience_ends is not None:
        waits.append((problem.patience_ends - now).total_seconds())
    due = [seconds for seconds in waits if seconds is not None]
    return Decision(
        create=(
            *target.create,
            *(() if isinstance(restored, Stalled) else restored),
            *service.create,
        ),
        apply=(*_scale_children(observed, target, active), *service.apply),
        delete=removal.delete,
        status=status.to_wire(),
        events=list_events(observed.status, status),
        requests=target.assessment.requests,
        requeue_after=max(0.1, min(due)) if due else None,
    )


def build_rejected_endpoint_status(
    endpoint: Manifest, why: EventRecord, now: datetime
) -> Mapping[str, Any] | None:
    """The status of an endpoint for which the API server rejects a write."""
    old = ModelEndpointStatus.from_stored(endpoint.get("status"))
    stalled, generation = Stalled(why.reason, why.message), _generation_of(endpoint)
    return build_stalled_status(generation, old, stalled, now).to_wire()


def _refuse_spec(endpoint: Manifest, error: ValidationError, now: datetime) -> Decision:
    first = error.errors()[0]
    field = ".".join(str(each) for each in first["loc"])
    why = Stalled("InvalidSpec", f"spec.{field}: {first['msg']}; correct it and apply again")
    old = ModelEndpointStatus.from_stored(endpoint.get("status"))
    new = build_stalled_status(_generation_of(endpoint), old, why, now)
    return Decision(status=new.to_wire(), events=list_events(old, new))


def _generation_of(endpoint: Manifest) -> int:
    return int(endpoint["metadata"].get("generation", 0))


def _advance_target(observed: Observed, view: View, settings: Settings, now: datetime) -> _Target:
    """The revision that the spec requires; its children are created if they are missing."""
    chosen = choose_revision(observed, settings, now)
    if isinstance(chosen, Stalled):
        return _Target(None, _wait(chosen))
    if isinstance(chosen, NewRevision):
        chosen = _start_revision(chosen, now)
    revision = chosen
    if observed.active is not None and revision.number == observed.active.number:
        return _Target(revision, Assessment("Active"))
    create: tuple[Manifest, ...] = ()
    if revision.child is None and revision.record.state != "Failed":
        uris = [revision.record.uri]
        if stalled := check_janitor(view, observed.namespace, uris, settings):
            return _Target(revision, _wait(stalled, JANITOR_RECHECK))
        children = _build_children(observed, revision, settings)
        if isinstance(children, Stalled):
            return _Target(revision, _wait(children))
        create = children
    patience = settings.scale_up_patience
    return _Target(revision, assess_revision(revision, observed, view, patience, now), create)


def _wait(stalled: Stalled, requeue_after: float | None = None) -> Assessment:
    return Assessment("Starting", stalled.message, stalled, requeue_after=requeue_after)


def _start_revision(new: NewRevision, now: datetime) -> Revision:
    record = RevisionStatus(
        revision=new.number,
        digest=new.model.digest,
        uri=new.model.uri,
        state="Starting",
        key=new.key,
        created_at=format_time(now),
        failed_before=new.failed_before,
    )
    return Revision(new.number, record, is_recorded=False, child=None, predictor=None, pods=())


def _build_children(
    observed: Observed, revision: Revision, settings: Settings
) -> tuple[Manifest, ...] | Stalled:
    record = revision.record
    artifact = parse_artifact(record.uri, record.digest)
    served = build_served_revision(observed, revision.number, record.key or "", artifact, settings)
    if isinstance(served, Stalled):
        return served
    if observed.has_kserve:
        return build_serving_runtime(served), inferenceservice.build_inference_service(served)
    return (deployment.build_deployment(served),)


def _restore_children(
    observed: Observed, active: Revision | None, settings: Settings
) -> tuple[Manifest, ...] | Stalled:
    """The children of the active revision, if a user has deleted them."""
    if active is None or active.child is not None:
        return ()
    return _build_children(observed, active, settings)


def _route_traffic(observed: Observed, active: Revision | None) -> _ServiceWrites:
    """Create the endpoint's Service, or switch it to the active revision."""
    if active is None:
        return _ServiceWrites()
    namespace, name, number = observed.namespace, observed.name, active.number
    app = revision_name(name, number)
    if _uses_kserve(observed, active):
        app = inferenceservice.predictor_app(app)
    service = observed.service
    if service is None:
        created = endpoint_service.build_endpoint_service(observed.endpoint, number, app)
        return _ServiceWrites(create=(created,))
    selector = service.get("spec", {}).get("selector")
    if selector == {deployment.APP_LABEL: app} and parse_revision_number(service) == number:
        return _ServiceWrites()
    patch = endpoint_service.build_selector_patch(namespace, name, number, app)
    return _ServiceWrites(apply=(patch,))


def _update_records(
    observed: Observed, target: _Target, active: Revision | None, now: datetime
) -> dict[int, RevisionStatus]:
    """Every revision with its new state."""
    records = {}
    revisions = {each.number: each for each in observed.revisions}
    if target.revision is not None:
        revisions.setdefault(target.revision.number, target.revision)
    for number, revision in revisions.items():
        record = revision.record
        if active is not None and number == active.number:
            # The predecessor stays for RETIRE_AFTER from now where the time cannot be read.
            ready_at = record.ready_at if parse_time(record.ready_at) else format_time(now)
            update = {"state": "Active", "message": None, "ready_at": ready_at}
        elif target.revision is not None and number == target.revision.number:
            update = {"state": target.assessment.state, "message": target.assessment.message}
            problem = target.assessment.problem
            if isinstance(problem, RevisionFailure) and problem.retry_at:
                update["retry_at"] = format_time(problem.retry_at)
        elif record.state == "Failed":
            update = {}
        else:
            update = {"state": "Retired", "message": None}
        records[number] = record.model_copy(update=update)
    return records


def _find_active_stall(
    observed: Observed, active: Revision | None, settings: Settings, now: datetime
) -> Stalled | None:
    """Why the active revision has fewer ready pods than replicas."""
    if active is None or len(pods.select_ready(active.pods)) >= observed.spec.replicas:
        return None
    patience = settings.scale_up_patience
    return pods.find_stall(active.pods, patience, now) or workload.find_creation_stall(active)


def _scale_children(
    observed: Observed, target: _Target, active: Revision | None
) -> tuple[Manifest, ...]:
    """Changes of the number of replicas, in place."""
    patches = []
    running = {each.number: each for each in (active, target.revision) if each is not None}
    for revision in running.values():
        child, replicas = revision.child, observed.spec.replicas
        if child is not None and workload.read_replicas(child) != replicas:
            kind = inferenceservice if revision.is_kserve else deployment
            name = revision_name(observed.name, revision.number)
            patches.append(kind.build_replicas_patch(observed.namespace, name, replicas))
    return tuple(patches)


def _remove_children(
    observed: Observed,
    target: _Target,
    records: Mapping[int, RevisionStatus],
    active: Revision | None,
    now: datetime,
) -> _Removal:
    """Delete the children of failed and retired revisions, and runtimes that no revision uses."""
    since = parse_time(records[active.number].ready_at) if active else None
    expired: list[Manifest] = []
    kept: list[Manifest] = []
    waits = []
    for revision in observed.revisions:
        if revision.child is None:
            continue
        left = _seconds_to_removal(revision, records[revision.number], since, now)
        (expired if left is not None and left <= 0 else kept).append(revision.child)
        if left is not None and left > 0:
            waits.append(left)
    used = {_find_runtime_name(each) for each in (*kept, *target.create)}
    expired += [each for each in observed.runtimes if each["metadata"]["name"] not in used]
    return _Removal(tuple(object_ref(each) for each in expired), min(waits, default=None))


def _seconds_to_removal(
    revision: Revision, record: RevisionStatus, since: datetime | None, now: datetime
) -> float | None:
    """Seconds until a revision's children are deleted; None if they stay.

    `since` is when the active revision took the traffic.
    """
    is_recorded = revision.is_recorded and revision.record.state == record.state
    if record.state not in ("Failed", "Retired") or not is_recorded:
        return None
    if record.state == "Failed" or record.ready_at is None or since is None:
        return 0.0
    return (since + RETIRE_AFTER - now).total_seconds()


def _uses_kserve(observed: Observed, revision: Revision | None) -> bool:
    """Whether KServe runs a revision, or will run one without children."""
    if revision is None or revision.child is None:
        return observed.has_kserve
    return revision.is_kserve


def _find_runtime_name(child: Manifest) -> str | None:
    model = child.get("spec", {}).get("predictor", {}).get("model", {})
    name = model.get("runtime")
    return str(name) if name else None
