"""What an attempt is made of, and asking for it.

An attempt counts as begun when its Job has been seen, not when it was asked for. Until then the
same attempt is asked for again, which is harmless as names are fixed; so neither a crash between
two API calls nor a cache that lags behind our own writes can start a second gang.
"""

from dataclasses import replace

from finetune_api.run import Failure, RunConfig

from finetune_operator.decision import Manifest
from finetune_operator.jobs.draft import Context, Draft
from finetune_operator.jobs.messages import starting
from finetune_operator.jobs.observe import Attempt
from finetune_operator.jobs.policies.node_exclusion import excluded
from finetune_operator.jobs.stages.base import PodStage
from finetune_operator.jobs.workspace_claim import workspace_stall
from finetune_operator.manifest import format_time
from finetune_operator.names import child_name, master_host
from finetune_operator.resources.attempt_metadata import AttemptMetadata
from finetune_operator.resources.configmap import run_configmap
from finetune_operator.resources.job import stage_job
from finetune_operator.resources.pod import PodShape
from finetune_operator.resources.rendezvous_service import rendezvous_service
from finetune_operator.resources.workspace_pvc import workspace_claim
from finetune_operator.stalled import Stalled

RECHECK = 5.0
"""Seconds after which a job that waits for the cluster is looked at without being told."""


def launch(ctx: Context, draft: Draft, stage: PodStage, number: int) -> None:
    """Ask for every child of an attempt that is not there yet; the Job comes last."""
    draft.update(
        phase=stage.phase(ctx.observed.numbered(stage.name, number) if number > 1 else None)
    )
    draft.wake(RECHECK)
    config = _config(ctx, draft, stage, number)
    if isinstance(config, Failure):
        draft.fail(stage.name, config)
        return
    children = config if isinstance(config, Stalled) else _children(ctx, draft, stage, config)
    if isinstance(children, Stalled):
        draft.stall = children
        return
    assert isinstance(config, RunConfig)
    draft.update(plan=draft.status.plan or config.plan)
    draft.stall = _taken(ctx, children)
    if draft.stall is not None:
        draft.wake(1.0)
        return
    # With the same write the spec is frozen, before anything is made of it.
    draft.update(started_at=draft.status.started_at or format_time(ctx.now))
    draft.update_stage(stage.name, retry_at=None)
    _claim(ctx, draft)
    draft.create.extend(child for child in children if _cached(ctx, child) is None)
    draft.update(message=starting(draft, stage.name, number))


def restore(ctx: Context, draft: Draft, stage: PodStage, attempt: Attempt) -> None:
    """Without the claim, its ConfigMap or its Service a pod that has not started never will."""
    _claim(ctx, draft)
    given, name = attempt.config, child_name(ctx.name, stage.name, attempt.number)
    if given and (not given.master_host or ctx.view.get("Service", ctx.namespace, name)):
        return
    config = _config(ctx, draft, stage, attempt.number)
    if isinstance(config, Stalled | Failure):
        return
    children = _children(ctx, draft, stage, config)
    if isinstance(children, Stalled):
        return
    draft.create.extend(child for child in children[:-1] if _cached(ctx, child) is None)


def _claim(ctx: Context, draft: Draft) -> None:
    if ctx.view.get("PersistentVolumeClaim", ctx.namespace, ctx.settings.workspace_claim) is None:
        draft.create.append(workspace_claim(ctx.namespace, ctx.settings))


def _config(
    ctx: Context, draft: Draft, stage: PodStage, number: int
) -> RunConfig | Stalled | Failure:
    """What the attempt before was given, so that an upgrade never changes a running job."""
    before = ctx.observed.given(stage.name)
    if before is None or before.config is None:
        return stage.config(ctx, draft.status, number)
    host = before.config.master_host and master_host(child_name(ctx.name, stage.name, number))
    return before.config.model_copy(update={"attempt": number, "master_host": host})


def _children(
    ctx: Context, draft: Draft, stage: PodStage, config: RunConfig
) -> list[Manifest] | Stalled:
    shape = workspace_stall(ctx, config) or stage.shape(ctx, draft.status, config)
    if isinstance(shape, Stalled):
        return shape
    return _manifests(ctx, stage, config, replace(shape, avoid=excluded(draft.status.nodes)))


def _manifests(ctx: Context, stage: PodStage, config: RunConfig, shape: PodShape) -> list[Manifest]:
    """The attempt's children; a later attempt has the image of the one before, and its run.json
    down to the fields that this version does not know."""
    identity = AttemptMetadata(ctx.job, stage.name, config.attempt)
    before = ctx.observed.given(stage.name)
    image = (before.image if before else None) or ctx.settings.trainer_image
    children = [run_configmap(identity, config, image, before.run if before else None)]
    if shape.rendezvous:
        children.append(rendezvous_service(identity))
    return [*children, stage_job(identity, shape, replace(ctx.settings, trainer_image=image))]


def _cached(ctx: Context, child: Manifest) -> Manifest | None:
    return ctx.view.get(child["kind"], ctx.namespace, child["metadata"]["name"])


def _taken(ctx: Context, children: list[Manifest]) -> Stalled | None:
    """A child's name may still be held by an earlier job of the same name that is going."""
    for child in children:
        found = _cached(ctx, child)
        owners = (found or {}).get("metadata", {}).get("ownerReferences") or ()
        if found is not None and all(owner.get("uid") != ctx.uid for owner in owners):
            name = f"{child['kind']} {child['metadata']['name']}"
            return Stalled("NameTaken", f"{name} belongs to something else; waiting for it to go")
    return None
