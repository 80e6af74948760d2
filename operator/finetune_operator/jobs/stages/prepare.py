"""prepare: fetch model and data, check every row, tokenise; on a CPU, before a GPU is asked for."""

from finetune_api.finetunejob import (
    DataSource,
    FineTuneJobSpec,
    FineTuneJobStatus,
    ModelAddress,
    Phase,
)
from finetune_api.run import (
    DATA_SECRET_PREFIXES,
    MODEL_SECRET_PREFIX,
    REWARD_SECRET_PREFIX,
    VALIDATION_SECRET_PREFIX,
    Failure,
    Paths,
    RunConfig,
    StageResult,
)

from finetune_operator.jobs.draft import Context
from finetune_operator.jobs.observe import Attempt
from finetune_operator.jobs.stages.base import Accepted, PodStage
from finetune_operator.jobs.stall_checks import claim_stall
from finetune_operator.names import artifact_in, claim_of, job_path, model_path
from finetune_operator.profiles import find_profile
from finetune_operator.resources.pod import Mount, PodShape, SecretEnv
from finetune_operator.resources.resource_requirements import host_resources
from finetune_operator.stalled import Stalled
from finetune_operator.workspaces.plan import unknown_to_janitor


def phase(attempt: Attempt | None) -> Phase:
    """Pending until there is something to look at."""
    return "Pending" if attempt is None else "Preparing"


def config(ctx: Context, status: FineTuneJobStatus, attempt: int) -> RunConfig | Stalled | Failure:
    """Needs nothing but the spec, and that no address names what is another job's."""
    workspace = ctx.settings.workspace_claim
    for source, _ in sources(ctx.spec):
        if claim_of(source.uri) == workspace and artifact_in(source.uri, workspace) is None:
            return not_an_artifact(source.uri, workspace)
    return ctx.run_config("prepare", attempt)


def shape(ctx: Context, status: FineTuneJobStatus, config: RunConfig) -> PodShape | Stalled:
    """One pod without devices that alone may write the model cache and see Secrets.

    The profile is looked up here already, so that a job that cannot train says so at once.
    """
    pool = find_profile(ctx.view, ctx.spec.compute.profile)
    if isinstance(pool, Stalled):
        return pool
    workspace = ctx.settings.workspace_claim
    claims = user_claims(ctx.spec, workspace)
    named = [source.uri for source, _ in sources(ctx.spec)]
    stall = claim_stall(ctx.view, ctx.namespace, claims) or unknown_to_janitor(
        ctx.view, ctx.namespace, named, ctx.settings
    )
    if stall is not None:
        return stall
    model = ctx.spec.model
    return PodShape(
        resources=host_resources(),
        shared_memory=pool.spec.shared_memory,
        mounts=(
            Mount(Paths().model_cache, model_path(model.uri, model.revision)),
            Mount(Paths().job, job_path(ctx.uid)),
            *reward_mount(ctx.spec),
            *artifact_mounts(ctx.spec, workspace),
        ),
        secrets=secrets(ctx.spec),
        claims=claims,
    )


def not_an_artifact(uri: str, workspace: str) -> Failure:
    """The workspace holds other jobs' data and checkpoints; only artifacts are for everybody."""
    return Failure(
        stage="prepare",
        reason="NotAnArtifact",
        message=f"{uri} is not the address of an artifact",
        remedy=(
            f"use status.artifact.uri of a FineTuneJob, which is pvc://{workspace}/artifacts/..., "
            "or a claim of your own"
        ),
    )


def artifact_mounts(spec: FineTuneJobSpec, workspace: str) -> list[Mount]:
    """Artifacts of earlier jobs that the sources name, each folder by itself and read-only."""
    folders = (artifact_in(source.uri, workspace) for source, _ in sources(spec))
    return [
        Mount(f"{Paths().volumes}/{workspace}/{folder}", folder, read_only=True)
        for folder in dict.fromkeys(folders)
        if folder
    ]


def reward_mount(spec: FineTuneJobSpec, read_only: bool = False) -> tuple[Mount, ...]:
    """The cache entry of grpo.rewardModel, where there is one."""
    reward = spec.grpo and spec.grpo.reward_model
    if not reward:
        return ()
    return (Mount(Paths().reward_cache, model_path(reward.uri, reward.revision), read_only),)


def sources(spec: FineTuneJobSpec) -> list[tuple[ModelAddress | DataSource, str]]:
    """Everything that prepare fetches, each with the prefix of its Secret's variables."""
    found: list[tuple[ModelAddress | DataSource, str]] = [
        (spec.model, MODEL_SECRET_PREFIX),
        *zip(spec.dataset.train, DATA_SECRET_PREFIXES, strict=False),
    ]
    if spec.dataset.validation:
        found.append((spec.dataset.validation, VALIDATION_SECRET_PREFIX))
    if spec.grpo and spec.grpo.reward_model:
        found.append((spec.grpo.reward_model, REWARD_SECRET_PREFIX))
    return found


def user_claims(spec: FineTuneJobSpec, workspace: str) -> list[str]:
    """Claims that pvc:// sources name, each once, in the order of the spec; never the workspace as
    a whole."""
    claims = (claim_of(source.uri) for source, _ in sources(spec))
    return list(dict.fromkeys(claim for claim in claims if claim and claim != workspace))


def secrets(spec: FineTuneJobSpec) -> list[SecretEnv]:
    """Secrets that the sources name; each source has a prefix of its own."""
    named = ((source.credentials_secret, prefix) for source, prefix in sources(spec))
    return [SecretEnv(name, prefix) for name, prefix in named if name]


def accept(ctx: Context, status: FineTuneJobStatus, result: StageResult) -> Accepted | None:
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
    return Accepted(status.model_copy(update=facts), message)


PREPARE = PodStage("prepare", phase, config, shape, accept)
