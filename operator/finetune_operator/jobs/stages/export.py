"""export: the folder that can be served, with a digest over every file."""

from finetune_api.artifact_retention import ALWAYS
from finetune_api.failure import Failure
from finetune_api.finetunejob import FineTuneJobStatus, Phase
from finetune_api.run_config import Paths, RunConfig
from finetune_api.stage_result import StageResult

from finetune_operator.jobs.draft import Context
from finetune_operator.jobs.observe import Attempt
from finetune_operator.jobs.stages.base import Accepted, PodStage, planned_profile
from finetune_operator.names import artifact_path, artifact_uri, job_path, model_path
from finetune_operator.planner.export import export_memory_bytes
from finetune_operator.planner.quantity import GIB, MIB
from finetune_operator.profiles import find_profile
from finetune_operator.resources.pod import Mount, StagePods
from finetune_operator.resources.resource_requirements import (
    build_host_requests,
    build_host_resources,
)
from finetune_operator.stalled import Stalled


def phase(attempt: Attempt | None) -> Phase:
    return "Exporting"


def build_config(
    ctx: Context, status: FineTuneJobStatus, attempt: int
) -> RunConfig | Stalled | Failure:
    """With the results of evaluate, for the model card."""
    return ctx.run_config(
        "export",
        attempt,
        plan=status.plan,
        model=status.model,
        data=status.data,
        evaluation=status.evaluation,
        artifact_uri=artifact_uri(ctx.settings.workspace_claim, ctx.name, ctx.uid),
        artifact_retention=_choose_retention(ctx),
    )


def _choose_retention(ctx: Context) -> str | None:
    """The job's own retention, else the installation's; None for Always, the trainer's default."""
    own = ctx.spec.export.retain if ctx.spec.export else None
    retention = own or ctx.settings.artifact_retention
    return None if retention == ALWAYS else retention


ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(MIB)}
"""glibc gives memory of this size and more back at once. By itself it puts fp32 copies of up to 32
MiB on its heap, between small tensors that stay: DoRA then took as much again as the weights."""


def build_pods(ctx: Context, status: FineTuneJobStatus, config: RunConfig) -> StagePods | Stalled:
    """One pod without devices: merging is arithmetic on weights in host memory."""
    profile = find_profile(ctx.view, planned_profile(ctx, config.plan))
    if isinstance(profile, Stalled):
        return profile
    model = ctx.spec.model
    return StagePods(
        resources=build_host_resources(
            build_host_requests(
                export_memory_bytes(config.spec, config.model) if config.model else GIB
            ),
            ctx.settings.cpu_pods.limits,
        ),
        shared_memory=profile.spec.shared_memory,
        env=ALLOCATOR,
        mounts=(
            Mount(Paths().model_cache, model_path(model.uri, model.revision), is_read_only=True),
            Mount(Paths().job, job_path(ctx.uid)),
            Mount(Paths().artifact, artifact_path(ctx.name, ctx.uid)),
        ),
    )


def accept(ctx: Context, result: StageResult) -> Accepted | None:
    """The artifact, under the address that the operator gave it."""
    if result.artifact is None:
        return None
    uri = artifact_uri(ctx.settings.workspace_claim, ctx.name, ctx.uid)
    artifact = result.artifact.model_copy(update={"uri": uri})
    message = f"{artifact.bytes / GIB:.2f} GiB at {artifact.uri}, {artifact.digest[:19]}"
    return Accepted({"artifact": artifact}, message)


EXPORT = PodStage("export", phase, build_config, build_pods, accept)
