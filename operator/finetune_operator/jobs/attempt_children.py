"""The children of an attempt: the workspace claim if it is missing, ConfigMap, Service, Job.

An attempt has begun when its Job is in the cache, not when the operator sent it. Until then the
same attempt is created again, which is harmless as names are fixed; so neither a crash between two
API calls nor a cache that lags behind the operator's own writes can start a second gang.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from finetune_api.failure import Failure
from finetune_api.finetunejob import FineTuneJobStatus
from finetune_api.run_config import RunConfig

from finetune_operator.decision import Manifest
from finetune_operator.jobs.draft import Context
from finetune_operator.jobs.observe import Attempt
from finetune_operator.jobs.policies.node_exclusion import list_excluded_nodes
from finetune_operator.jobs.service_account import check_service_account
from finetune_operator.jobs.stages.base import PodStage
from finetune_operator.jobs.workspace_claim import check_workspace
from finetune_operator.names import child_name, master_host
from finetune_operator.resources.configmap import build_run_configmap
from finetune_operator.resources.job import build_stage_job
from finetune_operator.resources.metadata import AttemptMetadata
from finetune_operator.resources.rendezvous_service import build_rendezvous_service
from finetune_operator.resources.workspace_pvc import build_workspace_pvc
from finetune_operator.stalled import Stalled


@dataclass(frozen=True)
class AttemptChildren:
    """The children of an attempt that the cache does not have."""

    config: RunConfig
    missing: tuple[Manifest, ...]
    """In the order of creation, the Job last."""
    name_conflict: Stalled | None
    """An object of another owner has the name of a child."""


def build_children(
    ctx: Context, status: FineTuneJobStatus, stage: PodStage, number: int
) -> AttemptChildren | Stalled | Failure:
    """The children of an attempt. A later attempt gets the image of the one before and its
    run.json, with fields that this version does not know: an upgrade never changes a running job.
    """
    previous = ctx.observed.configured.get(stage.name)
    if previous is None or previous.config is None:
        config = stage.build_config(ctx, status, number)
        if not isinstance(config, RunConfig):
            return config
    else:
        host = previous.config.master_host and master_host(child_name(ctx.name, stage.name, number))
        config = previous.config.model_copy(update={"attempt": number, "master_host": host})
    claim = ctx.view.get("PersistentVolumeClaim", ctx.namespace, ctx.settings.workspace_claim)
    stalled = None if claim is None else check_workspace(claim, ctx.spec, config)
    pods = stalled or stage.build_pods(ctx, status, config)
    if isinstance(pods, Stalled):
        return pods
    if stalled := check_service_account(pods.service_account_name, ctx.settings):
        return stalled
    pods = replace(
        pods,
        priority_class_name=ctx.spec.priority_class_name,
        metadata=ctx.spec.pod_metadata,
    )
    if status.nodes:
        pods = replace(pods, excluded_nodes=list_excluded_nodes(status.nodes))
    attempt = AttemptMetadata(ctx.job, stage.name, number)
    image = (previous.image if previous else None) or ctx.settings.trainer_image
    manifests = [] if claim else [build_workspace_pvc(ctx.namespace, ctx.settings)]
    manifests.append(
        build_run_configmap(attempt, config, image, previous.run if previous else None)
    )
    if pods.has_rendezvous:
        manifests.append(build_rendezvous_service(attempt))
    manifests.append(build_stage_job(attempt, pods, replace(ctx.settings, trainer_image=image)))
    missing = tuple(child for child in manifests if _find_cached(ctx, child) is None)
    return AttemptChildren(config, missing, _find_name_conflict(ctx, manifests))


def build_missing_children(
    ctx: Context, status: FineTuneJobStatus, stage: PodStage, attempt: Attempt
) -> list[Manifest]:
    """What was deleted of a running attempt: without the claim, its ConfigMap or its Service, a pod
    that has not started never does."""
    name = child_name(ctx.name, stage.name, attempt.number)
    claim = ctx.view.get("PersistentVolumeClaim", ctx.namespace, ctx.settings.workspace_claim)
    config = attempt.config
    is_complete = config is not None and (
        not config.master_host or ctx.view.get("Service", ctx.namespace, name) is not None
    )
    if is_complete and claim is not None:
        return []
    children = build_children(ctx, status, stage, attempt.number)
    if isinstance(children, AttemptChildren):
        return [child for child in children.missing if child["kind"] != "Job"]
    return [] if claim else [build_workspace_pvc(ctx.namespace, ctx.settings)]


def _find_cached(ctx: Context, child: Manifest) -> Manifest | None:
    """The object of the child's name, whatever its owner is."""
    return ctx.view.get(child["kind"], ctx.namespace, child["metadata"]["name"])


def _find_name_conflict(ctx: Context, children: Sequence[Manifest]) -> Stalled | None:
    """An earlier job of the same name that is being deleted may still hold a child's name."""
    for child in children:
        found = _find_cached(ctx, child)
        owners = (found or {}).get("metadata", {}).get("ownerReferences") or ()
        if found is not None and all(owner.get("uid") != ctx.uid for owner in owners):
            name = f"{child['kind']} {child['metadata']['name']}"
            return Stalled("NameTaken", f"{name} belongs to something else; waiting for it to go")
    return None
