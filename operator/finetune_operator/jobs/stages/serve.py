"""serve: hand the artifact to a ModelEndpoint and wait until it takes the traffic.

The endpoint outlives the job and may have been made by hand, so the job sets only the artifact and
its probe; it sets profile and devices when it creates the endpoint and never again. It sets the
artifact once: a job that finds another one in its place later was superseded, and does not set its
own again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api import API_VERSION
from finetune_api.facts import ArtifactRef
from finetune_api.failure import Failure
from finetune_api.finetunejob import EndpointRef, FineTuneJobStatus
from finetune_api.modelendpoint import (
    ModelEndpointSpec,
    ModelEndpointStatus,
    Probe,
    RevisionStatus,
    ServedArtifact,
)
from pydantic import ValidationError

from finetune_operator.decision import Manifest
from finetune_operator.jobs.draft import Context
from finetune_operator.jobs.stages.base import Accepted, planned_profile
from finetune_operator.jobs.stages.export import recorded_probe
from finetune_operator.planner.serving import plan_serving_devices
from finetune_operator.profiles import find_profile
from finetune_operator.resources.metadata import build_labels
from finetune_operator.stalled import Stalled


@dataclass(frozen=True)
class RolloutInProgress:
    """The endpoint does not serve the artifact yet: what to write, and what to wait for."""

    message: str
    create: tuple[Manifest, ...] = ()
    apply: tuple[Manifest, ...] = ()


RolloutState = Accepted | RolloutInProgress | Stalled | Failure


def find_endpoint(ctx: Context) -> Manifest | None:
    """The ModelEndpoint that the job names, whether it serves the job's artifact or not."""
    return ctx.view.get("ModelEndpoint", ctx.namespace, endpoint_name(ctx))


def holds_artifact(endpoint: Manifest, status: FineTuneJobStatus) -> bool:
    """Whether the endpoint's spec names the job's artifact."""
    artifact = _require_artifact(status)
    held = (endpoint.get("spec") or {}).get("artifact") or {}
    return (held.get("uri"), held.get("digest")) == (artifact.uri, artifact.digest)


def roll_out(ctx: Context, status: FineTuneJobStatus, endpoint: Manifest | None) -> RolloutState:
    """What the roll-out needs now; Accepted when the endpoint serves the artifact."""
    if endpoint is None:
        return _create(ctx, status)
    if holds_artifact(endpoint, status):
        return _judge(ctx, status, endpoint)
    return _set_artifact(ctx, status, endpoint)


def _create(ctx: Context, status: FineTuneJobStatus) -> RolloutInProgress | Stalled | Failure:
    name, profile_name = endpoint_name(ctx), ctx.spec.serve.profile if ctx.spec.serve else None
    if profile_name is None:
        profile_name = planned_profile(ctx, status.plan)
    profile = find_profile(ctx.view, profile_name)
    if isinstance(profile, Stalled):
        return profile
    devices: int | Failure = 1
    if status.model is not None:
        devices = plan_serving_devices(status.model, profile.name, profile.spec)
    if isinstance(devices, Failure):
        return devices
    spec = _endpoint_spec(ctx, _require_artifact(status), profile=profile.name, gpus=devices)
    endpoint = _endpoint_manifest(ctx, spec)
    endpoint["metadata"]["labels"] = build_labels()
    return RolloutInProgress(f"endpoint {name} is being created", create=(endpoint,))


def _set_artifact(ctx: Context, status: FineTuneJobStatus, endpoint: Manifest) -> RolloutState:
    """Set the artifact, unless the job did before: then another job or a user has replaced it."""
    name, artifact = endpoint_name(ctx), _require_artifact(status)
    stage = next(stage for stage in status.stages if stage.name == "serve")
    if stage.attempt == 0:
        change = _endpoint_manifest(ctx, _endpoint_spec(ctx, artifact))
        return RolloutInProgress(f"endpoint {name} is given the new artifact", apply=(change,))
    served = ModelEndpointStatus.from_stored(endpoint.get("status"))
    revision = _find_revision(served.revisions, artifact)
    if revision is not None and revision.ready_at is not None:
        return _accept(ctx, served, revision)
    return Failure(
        stage="serve",
        reason="Superseded",
        message=f"endpoint {name} was given another artifact before this one took the traffic",
        remedy=f"set spec.artifact of the endpoint to {artifact.uri} if this model is wanted",
    )


def _judge(ctx: Context, status: FineTuneJobStatus, endpoint: Manifest) -> RolloutState:
    name = endpoint_name(ctx)
    served = ModelEndpointStatus.from_stored(endpoint.get("status"))
    revision = _find_revision(served.revisions, _require_artifact(status))
    if revision is None:
        return RolloutInProgress(
            f"endpoint {name}: {served.message or 'waiting for the new revision'}"
        )
    is_active = revision.revision == served.active_revision and revision.state == "Active"
    if is_active and served.phase == "Ready":
        return _accept(ctx, served, revision)
    if revision.state == "Failed" and revision.retry_at:
        return RolloutInProgress(f"endpoint {name}: {served.message}")
    detail = revision.message or served.message
    if revision.state == "Failed":
        before = served.active_revision
        if revision.failed_before:
            detail = f"{detail}; {revision.failed_before + 1} failures in a row"
        return Failure(
            stage="serve",
            reason="DeploymentFailed",
            message=f"endpoint {name} revision {revision.revision} failed: {detail}",
            remedy=f"kubectl describe mep {name}"
            + (f"; revision {before} still takes the traffic" if before else ""),
        )
    return RolloutInProgress(
        f"endpoint {name} revision {revision.revision} is {revision.state}: {detail}"
    )


def _accept(ctx: Context, served: ModelEndpointStatus, revision: RevisionStatus) -> Accepted:
    name, url = endpoint_name(ctx), served.url or ""
    message = f"revision {revision.revision} of endpoint {name} answers at {url}"
    if _find_probe(ctx) is None:
        message += "; there was no probe, so its answers were not compared with evaluation's"
    return Accepted({"endpoint": EndpointRef(name=name, url=url)}, message)


def endpoint_name(ctx: Context) -> str:
    assert ctx.spec.serve is not None, "without spec.serve there is no such stage"
    return ctx.spec.serve.endpoint


def _require_artifact(status: FineTuneJobStatus) -> ArtifactRef:
    assert status.artifact is not None, "export has succeeded"
    return status.artifact


def _find_revision(
    revisions: Sequence[RevisionStatus], artifact: ArtifactRef
) -> RevisionStatus | None:
    """The newest revision with the artifact's digest."""
    ours = [revision for revision in revisions if revision.digest == artifact.digest]
    return ours[-1] if ours else None


def _endpoint_spec(ctx: Context, artifact: ArtifactRef, **creation: Any) -> dict[str, Any]:
    """The fields that the job sets, as the API server has them, without defaults."""
    spec = ModelEndpointSpec(
        artifact=ServedArtifact(uri=artifact.uri, digest=artifact.digest),
        probe=_find_probe(ctx),
        **creation,
    )
    return spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)


def _find_probe(ctx: Context) -> Probe | None:
    """From export's run.json, or from the result of evaluate."""
    export = ctx.observed.configured.get("export")
    config = export.config if export else None
    record = (config.probe if config else None) or recorded_probe(ctx.observed)
    if record is None:
        return None
    try:
        return Probe.model_validate(record.model_dump())
    except ValidationError:
        return None


def _endpoint_manifest(ctx: Context, spec: dict[str, Any]) -> Manifest:
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelEndpoint",
        "metadata": {"name": endpoint_name(ctx), "namespace": ctx.namespace},
        "spec": spec,
    }
