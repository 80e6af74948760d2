"""ModelEndpoint: what to do next.

A revision is started beside the one that takes the traffic, examined, and only then pointed at.
Its predecessor stays for a short while, until every connection that was opened before has had
time to end. A revision that fails is taken away and never takes traffic.

Nothing is taken away before the status says so: a crash between two writes can then only repeat
a step, never forget why it was taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from finetune_api.modelendpoint import ModelEndpointStatus, RevisionStatus
from pydantic import ValidationError

from finetune_operator.decision import Decision, EventRecord, Manifest, ObjectRef, Settings, View
from finetune_operator.endpoints import pods, status, workload
from finetune_operator.endpoints.assess import Assessment, assess
from finetune_operator.endpoints.observe import (
    Observed,
    Revision,
    number_of,
    observe,
)
from finetune_operator.endpoints.revisions import Choice, choose, serve
from finetune_operator.manifest import format_time, object_ref, parse_time
from finetune_operator.resources import deployment, endpoint_service, inferenceservice
from finetune_operator.resources.servingruntime import build_serving_runtime
from finetune_operator.resources.vllm import revision_name
from finetune_operator.stalled import Stalled
from finetune_operator.workspaces.plan import RECHECK as JANITOR_RECHECK
from finetune_operator.workspaces.plan import check_janitor

RETIRE_AFTER = timedelta(seconds=30)
"""How long a revision runs on after its successor has taken the traffic."""


@dataclass(frozen=True)
class _Step:
    """The wished revision, judged."""

    revision: Revision | None
    """None while it cannot be made."""
    assessment: Assessment
    create: tuple[Manifest, ...] = ()


def reconcile_endpoint(
    endpoint: Manifest, view: View, settings: Settings, now: datetime
) -> Decision:
    """What an endpoint needs now; `now` must be timezone-aware, in UTC."""
    if endpoint["metadata"].get("deletionTimestamp"):
        return Decision()  # the children go with their owner
    try:
        observed = observe(endpoint, view)
    except ValidationError as error:
        return _unreadable(endpoint, error, now)
    step = _step(observed, choose(observed, settings), view, settings, now)
    active = _active(observed, step)
    records = _records(observed, step, active, now)
    restored, blocked = _restore(observed, step, active, settings)
    stalled = step.assessment.stalled or blocked or _active_obstacle(observed, active)
    rollout = status.Rollout(
        active=active,
        target=records.get(step.revision.number) if step.revision else None,
        stalled=stalled,
        records=records,
        kserve=_kserve(observed, active or step.revision),
    )
    new = status.compose(observed, rollout, now)
    deletes, wait = _deletes(observed, step, records, active, now)
    pointer_create, pointer_apply = _pointer(observed, active)
    waits = [each for each in (wait, step.assessment.look_again) if each is not None]
    return Decision(
        create=(*step.create, *restored, *pointer_create),
        apply=(*_sizes(observed, step, active), *pointer_apply),
        delete=deletes,
        status=new.to_wire(),
        events=status.events(observed.status, new),
        requests=step.assessment.requests,
        requeue_after=max(0.1, min(waits)) if waits else None,
    )


def rejected_endpoint(
    endpoint: Manifest, why: EventRecord, now: datetime
) -> Mapping[str, Any] | None:
    """The status of an endpoint for which the API server refuses a write."""
    old = ModelEndpointStatus.from_stored(endpoint.get("status"))
    return _told(endpoint, old, Stalled(why.reason, why.message), now).to_wire()


def _unreadable(endpoint: Manifest, error: ValidationError, now: datetime) -> Decision:
    first = error.errors()[0]
    field = ".".join(str(each) for each in first["loc"])
    why = Stalled("InvalidSpec", f"spec.{field}: {first['msg']}; correct it and apply again")
    old = ModelEndpointStatus.from_stored(endpoint.get("status"))
    new = _told(endpoint, old, why, now)
    return Decision(status=new.to_wire(), events=status.events(old, new))


def _told(
    endpoint: Manifest, old: ModelEndpointStatus, why: Stalled, now: datetime
) -> ModelEndpointStatus:
    return status.halted(endpoint["metadata"].get("generation", 0), old, why, now)


def _step(
    observed: Observed, choice: Choice, view: View, settings: Settings, now: datetime
) -> _Step:
    if choice.blocked is not None:
        blocked = choice.blocked
        return _Step(None, Assessment("Starting", blocked.message, blocked))
    revision = choice.revision or _new_revision(observed, choice, now)
    if observed.active is not None and revision.number == observed.active.number:
        return _Step(revision, Assessment("Active"))
    create: tuple[Manifest, ...] = ()
    if revision.child is None and revision.record.state != "Failed":
        named = [revision.record.uri]
        if wait := check_janitor(view, observed.namespace, named, settings):
            return _Step(revision, Assessment("Starting", wait.message, wait, (), JANITOR_RECHECK))
        made = _children(observed, revision, settings)
        if isinstance(made, Stalled):
            return _Step(revision, Assessment("Starting", made.message, made))
        create = made
    return _Step(revision, assess(revision, observed, view, now), create)


def _new_revision(observed: Observed, choice: Choice, now: datetime) -> Revision:
    artifact = observed.spec.artifact
    record = RevisionStatus(
        revision=choice.number,
        digest=artifact.digest,
        uri=artifact.uri,
        state="Starting",
        key=choice.key,
        created_at=format_time(now),
    )
    return Revision(choice.number, record, False, None, None, ())


def _children(
    observed: Observed, revision: Revision, settings: Settings
) -> tuple[Manifest, ...] | Stalled:
    served = serve(observed, revision.number, revision.record, settings)
    if isinstance(served, Stalled):
        return served
    if observed.kserve:
        return build_serving_runtime(served), inferenceservice.build_inference_service(served)
    return (deployment.build_deployment(served),)


def _active(observed: Observed, step: _Step) -> Revision | None:
    """The revision that takes the traffic from now on."""
    if step.revision is not None and step.assessment.state == "Active":
        return step.revision
    return observed.active


def _records(
    observed: Observed, step: _Step, active: Revision | None, now: datetime
) -> dict[int, RevisionStatus]:
    """Every revision with its new state."""
    out = {}
    known = {each.number: each for each in observed.revisions}
    if step.revision is not None:
        known.setdefault(step.revision.number, step.revision)
    for number, revision in known.items():
        record = revision.record
        if active is not None and number == active.number:
            ready_at = record.ready_at or format_time(now)
            update = {"state": "Active", "message": None, "ready_at": ready_at}
        elif step.revision is not None and number == step.revision.number:
            update = {"state": step.assessment.state, "message": step.assessment.message}
        elif record.state == "Failed":
            update = {}
        else:
            update = {"state": "Retired", "message": None}
        out[number] = record.model_copy(update=update)
    return out


def _restore(
    observed: Observed, step: _Step, active: Revision | None, settings: Settings
) -> tuple[tuple[Manifest, ...], Stalled | None]:
    """The children of the active revision, when somebody has deleted them."""
    if active is None or active.child is not None:
        return (), None
    made = _children(observed, active, settings)
    return ((), made) if isinstance(made, Stalled) else (made, None)


def _active_obstacle(observed: Observed, active: Revision | None) -> Stalled | None:
    """Why the active revision has less pods than wished for."""
    if active is None or len(pods.ready(active.pods)) >= observed.spec.replicas:
        return None
    return pods.obstacle(active.pods) or workload.stuck(active)


def _sizes(observed: Observed, step: _Step, active: Revision | None) -> tuple[Manifest, ...]:
    """Changes of the number of replicas, in place."""
    out = []
    running = {each.number: each for each in (active, step.revision) if each is not None}
    for revision in running.values():
        child, wanted = revision.child, observed.spec.replicas
        if child is not None and workload.replicas_of(child) != wanted:
            kind = inferenceservice if revision.kserve else deployment
            name = revision_name(observed.name, revision.number)
            out.append(kind.build_replicas_patch(observed.namespace, name, wanted))
    return tuple(out)


def _pointer(
    observed: Observed, active: Revision | None
) -> tuple[tuple[Manifest, ...], tuple[Manifest, ...]]:
    """The Service that points at the active revision: to be created, and to be applied."""
    if active is None:
        return (), ()
    name = revision_name(observed.name, active.number)
    app = inferenceservice.predictor_app(name) if _kserve(observed, active) else name
    if observed.pointer is None:
        return (endpoint_service.build_endpoint_service(observed.endpoint, active.number, app),), ()
    selector = observed.pointer.get("spec", {}).get("selector")
    if selector == {deployment.APP_LABEL: app} and number_of(observed.pointer) == active.number:
        return (), ()
    return (), (
        endpoint_service.build_selector_patch(
            observed.namespace, observed.name, active.number, app
        ),
    )


def _deletes(
    observed: Observed,
    step: _Step,
    records: dict[int, RevisionStatus],
    active: Revision | None,
    now: datetime,
) -> tuple[tuple[ObjectRef, ...], float | None]:
    """Children whose time is over, and the seconds until the next one's is."""
    since = parse_time(records[active.number].ready_at) if active else None
    gone: list[Manifest] = []
    kept: list[Manifest] = []
    waits = []
    for revision in observed.revisions:
        if revision.child is None:
            continue
        left = _seconds_left(revision, records[revision.number], since, now)
        (gone if left is not None and left <= 0 else kept).append(revision.child)
        if left is not None and left > 0:
            waits.append(left)
    used = {_runtime_of(each) for each in (*kept, *step.create)}
    gone += [each for each in observed.runtimes if each["metadata"]["name"] not in used]
    return tuple(object_ref(each) for each in gone), min(waits, default=None)


def _seconds_left(
    revision: Revision, record: RevisionStatus, since: datetime | None, now: datetime
) -> float | None:
    """Seconds until a revision's children go; None when they stay."""
    told = revision.recorded and revision.record.state == record.state
    if record.state not in ("Failed", "Retired") or not told:
        return None
    if record.state == "Failed" or record.ready_at is None or since is None:
        return 0.0
    return (since + RETIRE_AFTER - now).total_seconds()


def _kserve(observed: Observed, revision: Revision | None) -> bool:
    """What runs a revision; one without children will be run by what there is now."""
    if revision is None or revision.child is None:
        return observed.kserve
    return revision.kserve


def _runtime_of(child: Manifest) -> str | None:
    model = child.get("spec", {}).get("predictor", {}).get("model", {})
    name = model.get("runtime")
    return str(name) if name else None
