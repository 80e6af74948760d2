"""train: the gang, one pod per node, on the devices that the planner chose."""

import math

from finetune_api.acceleratorprofile import AcceleratorProfile
from finetune_api.facts import WorkspaceFacts
from finetune_api.failure import Failure
from finetune_api.finetunejob import FineTuneJobSpec, FineTuneJobStatus, Phase
from finetune_api.jobspec import Serve
from finetune_api.jobstatus import CheckpointStatus
from finetune_api.run_config import Paths, RunConfig
from finetune_api.stage_result import StageResult
from finetune_api.train_plan import TrainPlan

from finetune_operator.jobs.draft import Context
from finetune_operator.jobs.observe import Attempt
from finetune_operator.jobs.progress import format_loss
from finetune_operator.jobs.stages.base import Accepted, PodStage
from finetune_operator.jobs.stages.prepare import reward_mount
from finetune_operator.jobs.stages.serve import find_endpoint
from finetune_operator.names import child_name, job_path, master_host, model_path
from finetune_operator.planner.disk import check_free_space, checkpoint_bytes
from finetune_operator.planner.export import check_export_memory
from finetune_operator.planner.quantity import floor_quantity
from finetune_operator.planner.serving import plan_serving_devices
from finetune_operator.planner.training_plan import plan_training
from finetune_operator.profiles import find_profile
from finetune_operator.resources.pod import Mount, SecretKey, StagePods
from finetune_operator.resources.resource_requirements import build_training_resources
from finetune_operator.stalled import Stalled

LEAST_GRACE = 120
MOST_GRACE = 3600
GRACE_MARGIN = 3.0
"""A volume is slower while every pod of a node that is drained writes to it."""
STEP_SECONDS = 60.0
"""Time to end the step that runs, and for the ranks to agree on the last one."""
MLFLOW_KEYS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


def phase(attempt: Attempt | None) -> Phase:
    """Queued until every pod of the gang runs, as none can train alone."""
    if attempt is None or len(attempt.pods) < attempt.nodes:
        return "Queued"
    return "Queued" if any(pod.phase == "Pending" for pod in attempt.pods) else "Training"


def build_config(
    ctx: Context, status: FineTuneJobStatus, attempt: int
) -> RunConfig | Stalled | Failure:
    """The plan is made once; later attempts get the same."""
    if status.model is None or status.data is None:
        return Stalled("FactsMissing", "the result of prepare is not in the status")
    plan = status.plan or _plan(ctx, status)
    if not isinstance(plan, TrainPlan):
        return plan
    return ctx.run_config(
        "train",
        attempt,
        plan=plan,
        model=status.model,
        data=status.data,
        reward=status.reward,
        master_host=master_host(child_name(ctx.name, "train", attempt)),
    )


def _plan(ctx: Context, status: FineTuneJobStatus) -> TrainPlan | Stalled | Failure:
    """A model that could be trained but not stored, exported or served is refused now, not after
    training."""
    assert status.model is not None
    assert status.data is not None
    profile = find_profile(ctx.view, ctx.spec.compute.profile)
    if isinstance(profile, Stalled):
        return profile
    refusal = check_free_space(
        ctx.spec, status.model, status.workspace, ctx.settings.workspace_claim
    ) or check_export_memory(ctx.spec, status.model, ctx.settings.cpu_pods.max_memory)
    plan = plan_training(
        ctx.spec, status.model, status.data, profile.name, profile.spec, status.reward
    )
    if isinstance(plan, TrainPlan) and refusal is not None:
        return refusal
    if isinstance(plan, TrainPlan) and ctx.spec.serve is not None:
        target = _find_serving_profile(ctx, ctx.spec.serve, profile)
        if not isinstance(target, Stalled):
            devices = plan_serving_devices(status.model, target.name, target.spec)
            if isinstance(devices, Failure):
                return devices
    return plan


def _find_serving_profile(
    ctx: Context, serve: Serve, training: AcceleratorProfile
) -> AcceleratorProfile | Stalled:
    """The profile of the endpoint, which keeps its own where it exists."""
    endpoint = find_endpoint(ctx)
    if endpoint is not None:
        return find_profile(ctx.view, (endpoint.get("spec") or {}).get("profile"))
    return find_profile(ctx.view, serve.profile) if serve.profile else training


def build_pods(ctx: Context, status: FineTuneJobStatus, config: RunConfig) -> StagePods | Stalled:
    """One pod per node with the devices of the plan."""
    if config.plan is None:
        return Stalled("PlanMissing", "run.json of this attempt has no plan")
    profile = find_profile(ctx.view, config.plan.profile)
    if isinstance(profile, Stalled):
        return profile
    env = {}
    if profile.spec.resource_name is None:
        # Otherwise every process on a CPU pool starts a thread for every core of the node.
        env["OMP_NUM_THREADS"] = str(max(1, floor_quantity(profile.spec.cpu_per_device)))
    size = checkpoint_bytes(ctx.spec, config.model) if config.model else None
    model = ctx.spec.model
    return StagePods(
        resources=build_training_resources(profile.spec, config.plan.gpus_per_node),
        shared_memory=profile.spec.shared_memory,
        mounts=(
            Mount(Paths().model_cache, model_path(model.uri, model.revision), is_read_only=True),
            Mount(Paths().job, job_path(ctx.uid)),
            *reward_mount(ctx.spec, is_read_only=True),
        ),
        nodes=config.plan.nodes,
        has_rendezvous=True,
        profile=profile.spec,
        has_host_network=profile.spec.host_network,
        env=env,
        has_liveness_probe=True,
        grace_seconds=grace_seconds(status.checkpoint, size, status.workspace),
        secret_keys=tracker_keys(ctx.spec),
        service_account_name=ctx.spec.service_account_name if ctx.spec.tracking else None,
    )


def tracker_keys(spec: FineTuneJobSpec) -> list[SecretKey]:
    """The keys of the Secret that the job's trackers read from the environment, and no others."""
    tracking = spec.tracking
    if tracking is None or tracking.credentials_secret_ref is None:
        return []
    secret, keys = tracking.credentials_secret_ref.name, []
    if tracking.wandb and not tracking.wandb.offline:
        keys.append(SecretKey(secret, "WANDB_API_KEY", is_required=True))
    if tracking.mlflow and tracking.mlflow.tracking_uri:
        keys += [SecretKey(secret, key, is_required=False) for key in MLFLOW_KEYS]
    return keys


def grace_seconds(
    checkpoint: CheckpointStatus | None,
    checkpoint_bytes: int | None,
    workspace: WorkspaceFacts | None,
) -> int:
    """terminationGracePeriodSeconds: the time of one checkpoint, with a margin.

    A measured time is preferred to a computed one; the least where neither is known. Draining a
    node takes as long as its longest pod, so no pod gets more than it needs.
    """
    seconds = checkpoint.seconds if checkpoint else None
    if seconds is None and checkpoint_bytes is not None and workspace is not None:
        seconds = checkpoint_bytes / workspace.write_bytes_per_second
    if seconds is None:
        return LEAST_GRACE
    return math.ceil(max(LEAST_GRACE, min(MOST_GRACE, GRACE_MARGIN * seconds + STEP_SECONDS)))


def accept(ctx: Context, result: StageResult) -> Accepted | None:
    """Steps, loss, and which processes trained."""
    facts = result.train
    if facts is None:
        return None
    message = f"{facts.steps} steps by {facts.world_size} processes of {facts.engine}"
    if facts.precision is not None:
        message += f" in {facts.precision}"
    if (loss := format_loss(facts.final_loss)) is not None:
        message += f", last loss {loss}"
    if facts.best_step is not None:
        message += f", best at step {facts.best_step}"
    if facts.resumed_from_step:
        message += f", resumed from step {facts.resumed_from_step}"
    return Accepted({"training": facts}, message)


TRAIN = PodStage("train", phase, build_config, build_pods, accept)
