"""prepare: fetch model and data, check every row, tokenise; on a CPU, before a job has a GPU."""

from finetune_api.failure import Failure
from finetune_api.finetunejob import (
    DataSource,
    FineTuneJobSpec,
    FineTuneJobStatus,
    ModelAddress,
    Phase,
)
from finetune_api.protocol import (
    ADAPTER_SECRET_PREFIX,
    DATA_SECRET_PREFIXES,
    MODEL_SECRET_PREFIX,
    REWARD_SECRET_PREFIX,
    VALIDATION_SECRET_PREFIX,
)
from finetune_api.run_config import Paths, RunConfig
from finetune_api.stage_result import StageResult

from finetune_operator.jobs.draft import Context
from finetune_operator.jobs.observe import Attempt
from finetune_operator.jobs.stages.base import Accepted, PodStage
from finetune_operator.names import artifact_folder, claim_name, job_path, model_path
from finetune_operator.planner.quantity import GIB
from finetune_operator.profiles import find_profile
from finetune_operator.resources.pod import Mount, SecretEnv, StagePods
from finetune_operator.resources.resource_requirements import (
    build_host_requests,
    build_host_resources,
)
from finetune_operator.stalled import Stalled
from finetune_operator.workspaces.plan import check_janitor


def phase(attempt: Attempt | None) -> Phase:
    """Pending until its Job exists."""
    return "Pending" if attempt is None else "Preparing"


def build_config(
    ctx: Context, status: FineTuneJobStatus, attempt: int
) -> RunConfig | Stalled | Failure:
    """Needs only the spec. An address inside the workspace must be that of an artifact, as other
    folders belong to other jobs."""
    workspace = ctx.settings.workspace_claim
    for source, _ in sources(ctx.spec):
        if claim_name(source.uri) == workspace and artifact_folder(source.uri, workspace) is None:
            return Failure(
                stage="prepare",
                reason="NotAnArtifact",
                message=f"{source.uri} is not the address of an artifact",
                remedy=(
                    "use status.artifact.uri of a FineTuneJob, which is "
                    f"pvc://{workspace}/artifacts/..., or a claim of your own"
                ),
            )
    return ctx.run_config("prepare", attempt)


def build_pods(ctx: Context, status: FineTuneJobStatus, config: RunConfig) -> StagePods | Stalled:
    """One pod without devices that alone may write the model cache and see Secrets.

    The profile is read here already, so that a job that cannot train stalls at once.
    """
    profile = find_profile(ctx.view, ctx.spec.compute.profile)
    if isinstance(profile, Stalled):
        return profile
    workspace, fetched = ctx.settings.workspace_claim, sources(ctx.spec)
    claims = user_claims(ctx.spec, workspace)
    folders = (artifact_folder(source.uri, workspace) for source, _ in fetched)
    artifacts = [folder for folder in dict.fromkeys(folders) if folder]
    stalled = _check_claims(ctx, claims)
    if artifacts and stalled is None:
        uris = [source.uri for source, _ in fetched]
        stalled = check_janitor(ctx.view, ctx.namespace, uris, ctx.settings)
    if stalled is not None:
        return stalled
    model, volumes = ctx.spec.model, f"{Paths().volumes}/{workspace}"
    return StagePods(
        resources=build_host_resources(build_host_requests(GIB), ctx.settings.cpu_pods.limits),
        shared_memory=profile.spec.shared_memory,
        mounts=(
            Mount(Paths().model_cache, model_path(model.uri, model.revision)),
            Mount(Paths().job, job_path(ctx.uid)),
            *reward_mount(ctx.spec),
            *(Mount(f"{volumes}/{folder}", folder, is_read_only=True) for folder in artifacts),
        ),
        secrets=[
            SecretEnv(source.credentials_secret_ref.name, prefix)
            for source, prefix in fetched
            if source.credentials_secret_ref
        ],
        claims=claims,
        service_account_name=ctx.spec.service_account_name,
    )


def _check_claims(ctx: Context, claims: list[str]) -> Stalled | None:
    """The first of the user's claims that does not exist or has lost its volume."""
    for claim in claims:
        found = ctx.view.get("PersistentVolumeClaim", ctx.namespace, claim)
        if found is None:
            return Stalled(
                "VolumeClaimNotFound",
                f"PersistentVolumeClaim {claim} does not exist in namespace {ctx.namespace}; the "
                "job continues when it is created",
            )
        if (found.get("status") or {}).get("phase") == "Lost":
            return Stalled("VolumeClaimLost", f"PersistentVolumeClaim {claim} has lost its volume")
    return None


def reward_mount(spec: FineTuneJobSpec, is_read_only: bool = False) -> tuple[Mount, ...]:
    """The cache entry of grpo.rewardModel, where there is one."""
    reward = spec.grpo and spec.grpo.reward_model
    if not reward:
        return ()
    return (Mount(Paths().reward_cache, model_path(reward.uri, reward.revision), is_read_only),)


def sources(spec: FineTuneJobSpec) -> list[tuple[ModelAddress | DataSource, str]]:
    """Everything that prepare fetches, each with the prefix of the environment variables from its
    Secret."""
    found: list[tuple[ModelAddress | DataSource, str]] = [
        (spec.model, MODEL_SECRET_PREFIX),
        *zip(spec.dataset.train, DATA_SECRET_PREFIXES, strict=False),
    ]
    if spec.model.adapter:
        found.append((spec.model.adapter, ADAPTER_SECRET_PREFIX))
    if spec.dataset.validation:
        found.append((spec.dataset.validation, VALIDATION_SECRET_PREFIX))
    if spec.grpo and spec.grpo.reward_model:
        found.append((spec.grpo.reward_model, REWARD_SECRET_PREFIX))
    return found


def user_claims(spec: FineTuneJobSpec, workspace: str) -> list[str]:
    """Claims that pvc:// sources name, each once, in the order of the spec; never the workspace as
    a whole."""
    claims = (claim_name(source.uri) for source, _ in sources(spec))
    return list(dict.fromkeys(claim for claim in claims if claim and claim != workspace))


def accept(ctx: Context, result: StageResult) -> Accepted | None:
    """Facts about model, data and workspace."""
    if result.model is None or result.data is None:
        return None
    data, model = result.data, result.model
    message = (
        f"{data.train_examples} rows to learn from in {data.train_sequences} sequences, "
        f"{data.eval_examples} held out; model of {model.parameters / 1e9:.2f} B parameters"
    )
    facts = {
        "model": model,
        "data": data,
        "reward": result.reward,
        "workspace": result.workspace,
    }
    return Accepted(facts, message)


PREPARE = PodStage("prepare", phase, build_config, build_pods, accept)
