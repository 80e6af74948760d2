"""FineTuneJob: the user's wish, from data to a served model.

The smallest job names a model and a data set; every other field has a default that an
experienced practitioner would defend, and what the planner chose is shown in status.plan.
The status is derived from the children by the operator and is never a trigger.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import (
    ChildName,
    Condition,
    LongText,
    ObjectName,
    Percent,
    Share,
    ShortText,
    SpecModel,
    StatusModel,
    Worded,
    cel,
    keyed_by,
    validations,
)
from finetune_api.run import (
    ArtifactRef,
    DataFacts,
    EvaluationSummary,
    Failure,
    ModelFacts,
    StageName,
    TrainFacts,
    TrainPlan,
)

MODEL_URI_PATTERN = r"^(hf|s3|gs|https|pvc)://[^\s/][^\s]*$"
DATA_URI_PATTERN = MODEL_URI_PATTERN
Uri = Annotated[
    str,
    StringConstraints(pattern=MODEL_URI_PATTERN, max_length=1024),
    Worded("uri must start with hf://, s3://, gs://, https:// or pvc:// and hold no spaces"),
]
Column = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class ModelSource(SpecModel):
    """Where the base model comes from."""

    model_config = validations(
        cel(
            "!has(self.revision) || self.uri.startsWith('hf://')",
            "revision needs an hf:// uri; other addresses have no revisions",
            ".revision",
        )
    )

    uri: Uri
    """hf://org/name, s3://bucket/prefix, gs://bucket/prefix, https://host/model.tar.gz or
    pvc://claim/path. Must hold config.json, safetensors weights and a tokenizer."""
    revision: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None
    """Branch, tag or commit of an hf:// model; absent means main. Commits are best."""
    credentials_secret: ObjectName | None = None
    """Secret in the job's namespace with keys such as HF_TOKEN, AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL or GOOGLE_APPLICATION_CREDENTIALS_JSON."""


class DataSource(SpecModel):
    """One file, or one folder of files, of examples."""

    model_config = validations(
        cel(
            "!has(self.revision) || self.uri.startsWith('hf://')",
            "revision needs an hf:// uri; other addresses have no revisions",
            ".revision",
        )
    )

    uri: Uri
    """hf://datasets/org/name/file, s3://, gs://, https:// or pvc:// path of a .jsonl, .json,
    .csv or .parquet file (.gz allowed for text)."""
    revision: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None
    """Branch, tag or commit of an hf:// data set; absent means main."""
    credentials_secret: ObjectName | None = None
    """Secret in the job's namespace, keys as in model.credentialsSecret."""


class Columns(SpecModel):
    """Names of the columns where they differ from the usual ones."""

    messages: Column | None = None
    """Chat format: list of {role, content}; usual names are messages and conversations."""
    prompt: Column | None = None
    """Instruction format: what is asked; usual names are prompt, instruction and question."""
    completion: Column | None = None
    """Instruction format: what is answered; usual names are completion, output, response and
    answer."""
    system: Column | None = None
    """Instruction format: a system prompt of the row; usual name is system."""


class Dataset(SpecModel):
    """What the model learns from and what it is judged on."""

    model_config = validations(
        cel(
            "!(has(self.validation) && has(self.holdout))",
            "give validation or holdout, not both",
            ".holdout",
        )
    )

    train: list[DataSource] = Field(min_length=1, max_length=1)
    """Training data: exactly one source."""
    validation: DataSource | None = None
    """Held-out data; give this or holdout, not both."""
    holdout: Share | None = None
    """Share of the training data that is held out, chosen by content hash so that equal rows
    never stand on both sides; 10% when neither validation nor holdout is given."""
    format: Literal["auto", "chat", "instruction"] = "auto"
    """Layout of a row; auto looks at the columns of the first row."""
    columns: Columns = Field(default_factory=Columns)
    """Column names where they differ from the usual ones."""


class LoRA(SpecModel):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = Field(default=16, ge=1, le=1024)
    """Rank r of the update."""
    alpha: int = Field(default=32, ge=1, le=4096)
    """Scaling numerator; the update is scaled by alpha / rank."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout on the input of the adapters."""
    target_modules: list[Annotated[str, StringConstraints(min_length=1, max_length=128)]] = Field(
        default_factory=lambda: ["all-linear"], min_length=1, max_length=64
    )
    """Module names that get adapters; all-linear means every linear layer but the head."""


class Method(SpecModel):
    """What is trained."""

    model_config = validations(
        cel(
            "self.type == 'LoRA' || !has(self.lora)",
            "lora is only for type LoRA",
            ".lora",
        )
    )

    type: Literal["LoRA", "Full"] = "LoRA"
    """LoRA trains adapters that are merged at export; Full trains every weight."""
    lora: LoRA | None = None
    """Settings of LoRA; absent means its defaults."""


class Checkpointing(SpecModel):
    """When the run is saved so that it can be resumed."""

    interval_steps: int = Field(default=100, ge=1, le=1000000)
    """Optimizer steps between checkpoints; one is always saved at the end."""
    keep_last: int = Field(default=2, ge=1, le=100)
    """Complete checkpoints that are kept."""


class Training(SpecModel):
    """How it is trained."""

    epochs: int = Field(default=3, ge=1, le=1000)
    """Passes over the training data."""
    max_steps: int | None = Field(default=None, ge=1, le=100000000)
    """Stop after this many optimizer steps even when epochs are left."""
    batch_size: int = Field(default=16, ge=1, le=65536)
    """Sequences per optimizer step over all devices."""
    micro_batch_size: int | None = Field(default=None, ge=1, le=4096)
    """Sequences per device and forward pass; absent means the planner chooses."""
    learning_rate: float | None = Field(default=None, gt=0, le=1)
    """Peak learning rate; absent means 1e-4 for LoRA and 1e-5 for Full."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after warm-up."""
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    """Share of all steps over which the learning rate rises linearly from zero."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0, le=1000)
    """Gradients are clipped to this global L2 norm."""
    max_sequence_length: int = Field(default=2048, ge=16, le=1048576)
    """Longest row in tokens; a longer answer is cut, a longer prompt is an error."""
    packing: bool = True
    """Fill rows with several examples that do not see each other."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Number format of weights and activations; optimizer states are kept in fp32."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass to save memory."""
    seed: int = Field(default=42, ge=0, le=4294967295)
    """Seed of order, dropout and initialisation."""
    checkpoint: Checkpointing = Field(default_factory=Checkpointing)
    """When the run is saved."""


class Compute(SpecModel):
    """Where it runs; what is left out the planner chooses."""

    profile: ObjectName | None = None
    """AcceleratorProfile; absent means the one marked as default."""
    nodes: int | None = Field(default=None, ge=1, le=1024)
    """Nodes, one pod each."""
    gpus_per_node: int | None = Field(default=None, ge=1, le=64)
    """Devices on each node; on a CPU pool, processes on each node. Absent means the fewest that
    fit, or whole nodes where nodes is 2 or more."""
    strategy: Literal["Auto", "DDP", "ZeRO1", "ZeRO2", "ZeRO3", "FSDP"] = "Auto"
    """How model and optimizer are spread over the devices."""


class GateRule(SpecModel):
    """A condition on the evaluation without which the job fails and nothing is served."""

    metric: Literal["loss", "exactMatch", "rougeL"]
    """loss: held-out loss, relative to the base model's; exactMatch and rougeL: points of a
    hundred above the base model's."""
    min_improvement: Percent
    """Least improvement over the base model; negative allows that much of a regression."""


class Evaluation(SpecModel):
    """How the tuned model is compared with its base."""

    max_samples: int = Field(default=512, ge=1, le=100000)
    """Most held-out rows used for the loss."""
    generations: int = Field(default=64, ge=3, le=10000)
    """Most held-out prompts answered by both models, for exactMatch and rougeL."""
    max_new_tokens: int = Field(default=128, ge=1, le=8192)
    """Longest answer in tokens."""
    gate: list[GateRule] = Field(default_factory=list, max_length=8)
    """Every rule must hold; an empty list lets every model through."""


class Serve(SpecModel):
    """Roll the result out."""

    endpoint: ChildName
    """Name of the ModelEndpoint in the job's namespace that gets the new revision; it is
    created when there is none."""
    profile: ObjectName | None = None
    """AcceleratorProfile to serve on; absent means the one trained on."""


class FineTuneJobSpec(SpecModel):
    """What the user wants."""

    model: ModelSource
    """The base model."""
    dataset: Dataset
    """The data."""
    objective: Literal["SFT"] = "SFT"
    """SFT: supervised fine-tuning, loss on the answers only."""
    method: Method = Field(default_factory=Method)
    """What is trained."""
    training: Training = Field(default_factory=Training)
    """How it is trained."""
    compute: Compute = Field(default_factory=Compute)
    """Where it runs."""
    evaluation: Evaluation = Field(default_factory=Evaluation)
    """How it is judged."""
    serve: Serve | None = None
    """Where it is served; absent means that the job ends with the artifact."""
    max_restarts: int = Field(default=3, ge=0, le=100)
    """Failed attempts that are tried again, over all stages; errors of the user never are."""


Phase = Literal[
    "Pending",
    "Preparing",
    "Queued",
    "Training",
    "Evaluating",
    "Exporting",
    "Deploying",
    "Succeeded",
    "Failed",
]
StageState = Literal["Pending", "Running", "Succeeded", "Failed"]


class StageStatus(StatusModel):
    """One stage of the job."""

    name: StageName
    """prepare, train, evaluate, export or serve."""
    state: StageState
    """How far it is."""
    attempt: int = Field(default=0, ge=0)
    """Attempt that runs or ran last, from 1; 0 before the first."""
    started_at: ShortText | None = None
    """Start of the first attempt, RFC 3339 in UTC."""
    finished_at: ShortText | None = None
    """End of the stage, RFC 3339 in UTC."""
    message: LongText | None = None
    """What it is doing or how it ended."""


class JobProgress(StatusModel):
    """Where the running stage is, as its pod last told."""

    stage: StageName
    """The stage that told it."""
    step: int = Field(default=0, ge=0)
    """Optimizer steps (train) or items done (other stages)."""
    total_steps: int | None = Field(default=None, ge=0)
    """Steps or items in all, when known."""
    summary: ShortText = ""
    """Step and total in a few characters, for kubectl get."""
    loss: float | None = None
    """Token-weighted training loss of the last step."""
    loss_text: ShortText | None = None
    """The loss rounded, for kubectl get."""
    tokens_per_second: float | None = None
    """Training tokens per second over all devices."""
    learning_rate: float | None = None
    """Learning rate of the last step."""
    epoch: float | None = None
    """Passes over the training data so far."""
    world_size: int | None = None
    """Processes that train together, as torch.distributed counts them."""
    engine: ShortText | None = None
    """Class that wraps the model in the running process."""
    last_checkpoint_step: int | None = None
    """Step of the newest complete checkpoint."""
    eta: ShortText | None = None
    """Time to the end of the stage, such as 3m20s."""
    updated_at: ShortText | None = None
    """When the pod told it, RFC 3339 in UTC."""


class EndpointRef(StatusModel):
    """Where the model is served."""

    name: ShortText
    """ModelEndpoint."""
    url: LongText
    """Base URL of the OpenAI API inside the cluster."""


class FineTuneJobStatus(StatusModel):
    """How far it is, derived from the children."""

    observed_generation: int = Field(default=0, ge=0)
    """metadata.generation that this status was computed from."""
    phase: Phase = "Pending"
    """Where the job is, in one word."""
    message: LongText = ""
    """Where the job is, in one line."""
    conditions: list[Condition] = Field(
        default_factory=list, max_length=16, json_schema_extra=keyed_by("type")
    )
    """Succeeded, Reconciling, Stalled, Prepared, Trained, Evaluated, Exported, Deployed."""
    stages: list[StageStatus] = Field(
        default_factory=list, max_length=8, json_schema_extra=keyed_by("name")
    )
    """Every stage of this job in order."""
    plan: TrainPlan | None = None
    """What the planner chose for training."""
    progress: JobProgress | None = None
    """Where the running stage is."""
    model: ModelFacts | None = None
    """What prepare found out about the model."""
    data: DataFacts | None = None
    """What prepare found out about the data."""
    training: TrainFacts | None = None
    """How training ended."""
    evaluation: EvaluationSummary | None = None
    """The tuned model compared with its base."""
    artifact: ArtifactRef | None = None
    """The exported model."""
    endpoint: EndpointRef | None = None
    """Where the model is served."""
    failure: Failure | None = None
    """Why the job failed, or why the last attempt did."""
    restarts: int = Field(default=0, ge=0)
    """Attempts that failed and were tried again."""
    started_at: ShortText | None = None
    """When the first stage started, RFC 3339 in UTC."""
    finished_at: ShortText | None = None
    """When the job ended, RFC 3339 in UTC."""
