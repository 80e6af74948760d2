"""serve: hand the model over to a ModelEndpoint and wait until the model takes the traffic.

The job creates the endpoint where there is none, and never writes to one that exists: an endpoint
without `spec.artifact` follows its jobs by itself, and one with it belongs to the person or the
tool that wrote it. The hand-over is the first attempt of the stage in the status of the job
(`exported_models`). A job whose endpoint has got the model of a younger job, or was pinned to
another one, was superseded.
"""

from dataclasses import dataclass
from typing import Any

from finetune_api import API_VERSION
from finetune_api.facts import ArtifactRef
from finetune_api.failure import Failure
from finetune_api.finetunejob import EndpointRef, FineTuneJobStatus
from finetune_api.modelendpoint import ModelEndpointSpec, ModelEndpointStatus, RevisionStatus

from finetune_operator.decision import Manifest
from finetune_operator.exported_models import (
    compute_age,
    find_younger_exporter,
    is_handed_over,
    read_source,
)
from finetune_operator.jobs.draft import Context
from finetune_operator.jobs.stages.base import Accepted, planned_profile
from finetune_operator.planner.serving import plan_serving_devices
from finetune_operator.profiles import find_profile
from finetune_operator.resources.metadata import build_labels
from finetune_operator.stalled import Stalled


@dataclass(frozen=True)
class RolloutInProgress:
    """The endpoint does not serve the model yet: what to create, and what to wait for."""

    message: str
    create: tuple[Manifest, ...] = ()


RolloutState = Accepted | RolloutInProgress | Stalled | Failure


def find_endpoint(ctx: Context) -> Manifest | None:
    """The ModelEndpoint that the job names, whether it serves the job's model or not."""
    return ctx.view.get("ModelEndpoint", ctx.namespace, endpoint_name(ctx))


def takes_model(endpoint: Manifest, status: FineTuneJobStatus) -> bool:
    """Whether the endpoint follows its jobs, or is pinned to the job's artifact."""
    pinned = _find_pin(endpoint)
    artifact = _require_artifact(status)
    return not pinned or pinned == {"uri": artifact.uri, "digest": artifact.digest}


def roll_out(ctx: Context, status: FineTuneJobStatus, endpoint: Manifest | None) -> RolloutState:
    """What the roll-out needs now; Accepted when the endpoint serves the model."""
    if endpoint is None:
        return _create(ctx, status)
    served = ModelEndpointStatus.from_stored(endpoint.get("status"))
    is_given = takes_model(endpoint, status) or is_handed_over(ctx.job)
    if is_given and not _has_recorded(served, ctx.job):
        # Its revisions are of an earlier time, and a job that ends may be deleted at once.
        text = served.message or "it has not been reconciled yet"
        return RolloutInProgress(f"endpoint {endpoint_name(ctx)}: {text}")
    revision = _find_revision(served, _require_artifact(status))
    replaced = _find_replacement(ctx, status, endpoint, served)
    if isinstance(replaced, Failure) and revision is not None and revision.ready_at is not None:
        # It took the traffic before it was replaced.
        return _accept(ctx, status, endpoint, served, revision)
    if replaced is not None:
        return replaced
    state = _check_revision(endpoint_name(ctx), served, revision)
    if isinstance(state, RevisionStatus):
        return _accept(ctx, status, endpoint, served, state)
    return state


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
    endpoint = _build_endpoint(ctx, profile=profile.name, gpus=devices)
    return RolloutInProgress(f"endpoint {name} is being created", create=(endpoint,))


def _build_endpoint(ctx: Context, **spec: Any) -> Manifest:
    """An endpoint that follows its jobs; no job owns it."""
    metadata = {"name": endpoint_name(ctx), "namespace": ctx.namespace, "labels": build_labels()}
    set_fields = ModelEndpointSpec(**spec).model_dump(
        mode="json", by_alias=True, exclude_none=True, exclude_unset=True
    )
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelEndpoint",
        "metadata": metadata,
        "spec": set_fields,
    }


def _find_replacement(
    ctx: Context, status: FineTuneJobStatus, endpoint: Manifest, served: ModelEndpointStatus
) -> Stalled | Failure | None:
    """Which model the endpoint serves instead of the job's. Before the hand-over a person can still
    decide for the job's; after it the job was superseded."""
    name, artifact, pinned = endpoint_name(ctx), _require_artifact(status), _find_pin(endpoint)
    own = f"{{uri: {artifact.uri}, digest: {artifact.digest}}}"
    if takes_model(endpoint, status):
        latest = None if pinned else served.latest
        if latest is None or compute_age(latest.job) <= compute_age(read_source(ctx.job)):
            return None
        why = f"it has that of job {latest.job.name}, which is younger"
    elif younger := find_younger_exporter(ctx.view, ctx.job):
        why = f"job {younger}, which is younger, has exported one for it"
    elif is_handed_over(ctx.job):
        why = f"its spec.artifact was set to {pinned.get('uri')}"
    else:
        return Stalled(
            "EndpointPinned",
            f"endpoint {name} serves {pinned.get('uri')}, which its spec.artifact names, and a job "
            f"never changes that: set spec.artifact to {own}, remove it so that the endpoint "
            "follows its jobs, or remove serve from the job",
        )
    return Failure(
        stage="serve",
        reason="Superseded",
        message=f"the model did not take the traffic of endpoint {name}: {why}",
        remedy=f"set spec.artifact of the endpoint to {own} if this model is wanted",
    )


def _check_revision(
    name: str, served: ModelEndpointStatus, revision: RevisionStatus | None
) -> RevisionStatus | RolloutInProgress | Failure:
    """The revision with the job's model where it takes the traffic, else how far it is."""
    if revision is None:
        return RolloutInProgress(
            f"endpoint {name}: {served.message or 'waiting for the new revision'}"
        )
    is_active = revision.revision == served.active_revision and revision.state == "Active"
    if is_active and served.phase == "Ready":
        return revision
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


def _accept(
    ctx: Context,
    status: FineTuneJobStatus,
    endpoint: Manifest,
    served: ModelEndpointStatus,
    revision: RevisionStatus,
) -> Accepted:
    name, url = endpoint_name(ctx), served.url or ""
    message = f"revision {revision.revision} of endpoint {name} answers at {url}"
    probe = endpoint["spec"].get("probe") if _find_pin(endpoint) else status.probe
    if probe is None:
        message += "; there was no probe, so its answers were not compared with evaluation's"
    return Accepted({"endpoint": EndpointRef(name=name, url=url)}, message)


def endpoint_name(ctx: Context) -> str:
    assert ctx.spec.serve is not None, "without spec.serve there is no such stage"
    return ctx.spec.serve.endpoint


def _find_pin(endpoint: Manifest) -> dict[str, Any]:
    """The artifact in the endpoint's spec; empty where it follows its jobs."""
    return (endpoint.get("spec") or {}).get("artifact") or {}


def _require_artifact(status: FineTuneJobStatus) -> ArtifactRef:
    assert status.artifact is not None, "export has succeeded"
    return status.artifact


def _has_recorded(served: ModelEndpointStatus, job: Manifest) -> bool:
    """Whether the endpoint was reconciled after the hand-over: from then on it never goes back to
    the model of an older job."""
    latest = served.latest
    return latest is not None and compute_age(latest.job) >= compute_age(read_source(job))


def _find_revision(served: ModelEndpointStatus, artifact: ArtifactRef) -> RevisionStatus | None:
    """The newest revision with the artifact."""
    wanted = artifact.uri, artifact.digest
    ours = [each for each in served.revisions if (each.uri, each.digest) == wanted]
    return ours[-1] if ours else None
