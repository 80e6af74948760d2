"""The status of a FineTuneJob, derived from the children by the operator.

It is for people and for `kubectl wait`, and is never a trigger: everything in it can be computed
again from what is there.
"""

from typing import Literal

from pydantic import Field

from finetune_api.base import Condition, LongText, ShortText, StatusModel, keyed_by
from finetune_api.run import (
    ArtifactRef,
    DataFacts,
    EvaluationSummary,
    Failure,
    ModelFacts,
    StageName,
    TrainFacts,
    TrainPlan,
    WorkspaceFacts,
)

Phase = Literal[
    "Pending",
    "Preparing",
    "Queued",
    "Training",
    "Evaluating",
    "Exporting",
    "Deploying",
    "Suspended",
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
    retry_at: ShortText | None = None
    """When the next attempt starts at the earliest, RFC 3339 in UTC; absent unless one waits."""
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
    eval_loss: float | None = None
    """Held-out loss as early stopping last saw it."""
    mfu: float | None = None
    """Model FLOP/s utilisation, 0 to 1, where the profile tells the device's peak."""
    peak_memory_bytes: int | None = None
    """Most memory that a process has held on its device."""
    stalled_since: ShortText | None = None
    """Since when a rank gives no sign of life, RFC 3339 in UTC; absent where all do."""
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


class CheckpointStatus(StatusModel):
    """The newest complete checkpoint: what a restart would resume from."""

    step: int = Field(ge=0)
    """Optimizer steps in it."""
    seconds: float | None = Field(default=None, ge=0)
    """Time from the decision to save until it was complete."""
    bytes: int | None = Field(default=None, ge=0)
    """Size of all its files."""


class NodeFailures(StatusModel):
    """A node on which attempts of this job went wrong."""

    name: ShortText
    """The node."""
    failures: int = Field(ge=1)
    """Attempts that ended because of it."""
    excluded: bool = False
    """Whether pods of this job avoid it: from the second failure on."""


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
    """Succeeded, Reconciling, Stalled, Suspended, Prepared, Trained, Evaluated, Exported,
    Deployed."""
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
    reward: ModelFacts | None = None
    """What prepare found out about grpo.rewardModel."""
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
    checkpoint: CheckpointStatus | None = None
    """What a restart of training would resume from."""
    nodes: list[NodeFailures] = Field(
        default_factory=list, max_length=64, json_schema_extra=keyed_by("name")
    )
    """Nodes on which attempts went wrong; suspending and resuming the job forgets them."""
    workspace: WorkspaceFacts | None = None
    """What prepare found out about the workspace."""
    suspended_at: ShortText | None = None
    """Since when the job is suspended, RFC 3339 in UTC."""
    suspended_seconds: int = Field(default=0, ge=0)
    """Time that it was suspended since it started, but for the suspension that lasts."""
    started_at: ShortText | None = None
    """When the first stage started, RFC 3339 in UTC."""
    finished_at: ShortText | None = None
    """When the job ended, RFC 3339 in UTC."""
