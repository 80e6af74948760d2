"""prepare: fetch model and data, check every row, tokenise; on a CPU, before a GPU is asked for."""

from finetune_api.finetunejob import FineTuneJobSpec, FineTuneJobStatus, Phase
from finetune_api.run import (
    DATA_SECRET_PREFIX,
    MODEL_SECRET_PREFIX,
    VALIDATION_SECRET_PREFIX,
    Failure,
    Paths,
    RunConfig,
    StageResult,
)

from finetune_operator.jobs.observe import Attempt
from finetune_operator.jobs.profile import find_pool
from finetune_operator.jobs.stage import Accepted, Context, PodStage
from finetune_operator.jobs.stall import Stall, claim_stall
from finetune_operator.names import claim_of, job_path, model_path
from finetune_operator.resources.compute import host_resources
from finetune_operator.resources.pod import Mount, PodShape, SecretEnv


def phase(attempt: Attempt | None) -> Phase:
    """Pending until there is something to look at."""
    return "Pending" if attempt is None else "Preparing"


def config(ctx: Context, status: FineTuneJobStatus, attempt: int) -> RunConfig | Stall | Failure:
    """Needs nothing but the spec."""
    return ctx.run_config("prepare", attempt)


def shape(ctx: Context, config: RunConfig) -> PodShape | Stall:
    """One pod without devices that alone may write the model cache and see Secrets.

    The profile is looked up here already, so that a job that cannot train says so at once.
    """
    pool = find_pool(ctx.view, ctx.spec.compute.profile)
    if isinstance(pool, Stall):
        return pool
    claims = user_claims(ctx.spec)
    stall = claim_stall(ctx.view, ctx.namespace, claims)
    if stall is not None:
        return stall
    model = ctx.spec.model
    return PodShape(
        resources=host_resources(),
        shared_memory=pool.spec.shared_memory,
        mounts=(
            Mount(Paths().model_cache, model_path(model.uri, model.revision)),
            Mount(Paths().job, job_path(ctx.uid)),
        ),
        secrets=secrets(ctx.spec),
        claims=claims,
    )


def user_claims(spec: FineTuneJobSpec) -> list[str]:
    """Claims that pvc:// sources name, each once, in the order of the spec."""
    sources = [spec.model.uri, *(source.uri for source in spec.dataset.train)]
    if spec.dataset.validation:
        sources.append(spec.dataset.validation.uri)
    return list(dict.fromkeys(claim for uri in sources if (claim := claim_of(uri))))


def secrets(spec: FineTuneJobSpec) -> list[SecretEnv]:
    """Secrets that the sources name; each source has a prefix of its own."""
    named = [
        (spec.model.credentials_secret, MODEL_SECRET_PREFIX),
        *((source.credentials_secret, DATA_SECRET_PREFIX) for source in spec.dataset.train),
    ]
    if spec.dataset.validation:
        named.append((spec.dataset.validation.credentials_secret, VALIDATION_SECRET_PREFIX))
    return [SecretEnv(name, prefix) for name, prefix in named if name]


def accept(ctx: Context, status: FineTuneJobStatus, result: StageResult) -> Accepted | None:
    """Facts about model and data."""
    if result.model is None or result.data is None:
        return None
    data, model = result.data, result.model
    message = (
        f"{data.train_examples} rows to learn from in {data.train_sequences} sequences, "
        f"{data.eval_examples} held out; model of {model.parameters / 1e9:.2f} B parameters"
    )
    return Accepted(status.model_copy(update={"model": model, "data": data}), message)


PREPARE = PodStage("prepare", phase, config, shape, accept)
