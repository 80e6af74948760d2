"""serve: hand the artifact to a ModelEndpoint and wait until it takes the traffic.

The endpoint outlives the job and may have been made by hand, so only the artifact and its probe
are ours; profile and devices are set when the endpoint is created and never again. The artifact
is set once: a job that finds another one in its place later was overtaken, and does not fight.
"""

from collections.abc import Sequence
from typing import Any

from finetune_api import API_VERSION
from finetune_api.finetunejob import EndpointRef
from finetune_api.modelendpoint import (
    ModelEndpointSpec,
    ModelEndpointStatus,
    Probe,
    RevisionStatus,
    ServedArtifact,
)
from finetune_api.run import ArtifactRef, Failure
from pydantic import ValidationError

from finetune_operator.decision import Manifest
from finetune_operator.jobs.draft import Context, Draft
from finetune_operator.jobs.stages.export import recorded_probe
from finetune_operator.manifest import format_time
from finetune_operator.planner.serving import plan_serving_devices
from finetune_operator.profiles import find_profile
from finetune_operator.resources.metadata import labels
from finetune_operator.stalled import Stalled

RECHECK = 5.0


def run_serve(ctx: Context, draft: Draft) -> bool:
    """Bring the roll-out as far as it can go now; True when our artifact takes the traffic."""
    state = draft.stage("serve")
    if state.state == "Succeeded":
        return True
    assert ctx.spec.serve is not None
    artifact = draft.status.artifact
    assert artifact is not None
    draft.update(phase="Deploying")
    draft.wake(RECHECK)
    name = ctx.spec.serve.endpoint
    endpoint = ctx.view.get("ModelEndpoint", ctx.namespace, name)
    if endpoint is None:
        _create(ctx, draft, name, artifact)
        return False
    if not _holds(endpoint, artifact):
        return _offer(ctx, draft, endpoint, artifact)
    started = state.started_at or format_time(ctx.now)
    draft.update_stage("serve", state="Running", attempt=1, started_at=started)
    return _judge(ctx, draft, name, ModelEndpointStatus.readable(endpoint.get("status")), artifact)


def _create(ctx: Context, draft: Draft, name: str, artifact: ArtifactRef) -> None:
    assert ctx.spec.serve is not None
    plan = draft.status.plan
    wanted = ctx.spec.serve.profile or (plan.profile if plan else ctx.spec.compute.profile)
    pool = find_profile(ctx.view, wanted)
    if isinstance(pool, Stalled):
        draft.stall = pool
        return
    devices: int | Failure = 1
    if draft.status.model is not None:
        devices = plan_serving_devices(draft.status.model, pool.name, pool.spec)
    if isinstance(devices, Failure):
        draft.fail("serve", devices)
        return
    spec = _spec(ctx, artifact, profile=pool.name, gpus=devices)
    endpoint = _manifest(ctx, name, spec)
    endpoint["metadata"]["labels"] = labels()
    draft.create.append(endpoint)
    _say(draft, f"endpoint {name} is being created")


def _offer(ctx: Context, draft: Draft, endpoint: Manifest, artifact: ArtifactRef) -> bool:
    """Set the artifact, unless it was ours before: then somebody else has set a newer one."""
    name = endpoint["metadata"]["name"]
    if draft.stage("serve").attempt == 0:
        draft.apply.append(_manifest(ctx, name, _spec(ctx, artifact)))
        _say(draft, f"endpoint {name} is given the new artifact")
        return False
    status = ModelEndpointStatus.readable(endpoint.get("status"))
    revision = _revision(status.revisions, artifact)
    if revision is not None and revision.ready_at is not None:
        return _succeed(ctx, draft, name, status, revision)
    failure = Failure(
        stage="serve",
        reason="Superseded",
        message=f"endpoint {name} was given another artifact before this one took the traffic",
        remedy=f"set spec.artifact of the endpoint to {artifact.uri} if this model is wanted",
    )
    draft.fail("serve", failure)
    return False


def _judge(
    ctx: Context,
    draft: Draft,
    name: str,
    status: ModelEndpointStatus,
    artifact: ArtifactRef,
) -> bool:
    revision = _revision(status.revisions, artifact)
    if revision is None:
        _say(draft, f"endpoint {name}: {status.message or 'waiting for the new revision'}")
        return False
    active = revision.revision == status.active_revision and revision.state == "Active"
    if active and status.phase == "Ready":
        return _succeed(ctx, draft, name, status, revision)
    detail = revision.message or status.message
    if revision.state == "Failed":
        failure = Failure(
            stage="serve",
            reason="DeploymentFailed",
            message=f"endpoint {name} revision {revision.revision} failed: {detail}",
            remedy=f"kubectl describe mep {name}; the revision before still takes the traffic",
        )
        draft.fail("serve", failure)
        return False
    _say(draft, f"endpoint {name} revision {revision.revision} is {revision.state}: {detail}")
    return False


def _succeed(
    ctx: Context,
    draft: Draft,
    name: str,
    status: ModelEndpointStatus,
    revision: RevisionStatus,
) -> bool:
    url = status.url or ""
    message = f"revision {revision.revision} of endpoint {name} answers at {url}"
    if _probe(ctx) is None:
        message += "; there was no probe, so its answers were not compared with evaluation's"
    draft.update(endpoint=EndpointRef(name=name, url=url), failure=None)
    _say(draft, message)
    draft.update_stage("serve", state="Succeeded", finished_at=format_time(ctx.now))
    return True


def _say(draft: Draft, message: str) -> None:
    draft.update(message=message[:4096])
    draft.update_stage("serve", message=message[:4096])


def _revision(revisions: Sequence[RevisionStatus], artifact: ArtifactRef) -> RevisionStatus | None:
    """The newest revision with our digest."""
    ours = [revision for revision in revisions if revision.digest == artifact.digest]
    return ours[-1] if ours else None


def _holds(endpoint: Manifest, artifact: ArtifactRef) -> bool:
    held = (endpoint.get("spec") or {}).get("artifact") or {}
    return (held.get("uri"), held.get("digest")) == (artifact.uri, artifact.digest)


def _spec(ctx: Context, artifact: ArtifactRef, **creation: Any) -> dict[str, Any]:
    """The fields that are ours, in the endpoint's own words, without defaults."""
    spec = ModelEndpointSpec(
        artifact=ServedArtifact(uri=artifact.uri, digest=artifact.digest),
        probe=_probe(ctx),
        **creation,
    )
    return spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)


def _probe(ctx: Context) -> Probe | None:
    """From export's run.json, or from evaluation's own result."""
    export = ctx.observed.given("export")
    config = export.config if export else None
    record = (config.probe if config else None) or recorded_probe(ctx.observed)
    if record is None:
        return None
    try:
        return Probe.model_validate(record.model_dump())
    except ValidationError:
        return None


def _manifest(ctx: Context, name: str, spec: dict[str, Any]) -> Manifest:
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelEndpoint",
        "metadata": {"name": name, "namespace": ctx.namespace},
        "spec": spec,
    }
