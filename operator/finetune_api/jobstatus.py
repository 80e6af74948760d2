"""The status of a FineTuneJob: what users and `kubectl wait` read, and what the operator keeps.

Phase, conditions and progress follow from the job's children. Counts, times, the plan and the facts
of finished stages outlive the children and exist only here, so the status must not be removed.
"""

from typing import Literal

from pydantic import Field

from finetune_api.base import (
    NOT_OBSERVED,
    Condition,
    LongText,
    ShortText,
    StatusModel,
    Time,
    list_map_key,
)
from finetune_api.evaluation_summary import EvaluationSummary, ProbeRecord
from finetune_api.facts import ArtifactRef, DataFacts, ModelFacts, TrainFacts, WorkspaceFacts
from finetune_api.failure import Failure
from finetune_api.protocol import StageName
from finetune_api.train_plan import TrainPlan

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
    """Whether the stage waits, runs or has ended."""
    attempt: int = Field(default=0, ge=0)
    """Number of the attempt that runs or ran last, counted from 1; 0 before the first."""
    started_at: Time | None = None
    """Start of the first attempt, RFC 3339 in UTC."""
    finished_at: Time | None = None
    """End of the stage, RFC 3339 in UTC."""
    retry_at: Time | None = None
    """Earliest start of the next attempt, RFC 3339 in UTC; absent unless one waits."""
    message: LongText | None = None
    """What the stage does, or how it ended."""


class JobProgress(StatusModel):
    """Progress of the running stage, as its pod last reported it."""

    stage: StageName
    """Stage that reported it."""
    step: int = Field(default=0, ge=0)
    """Optimizer steps (train) or items (other stages) that are done."""
    total_steps: int | None = Field(default=None, ge=0)
    """Steps or items in total, when known."""
    loss: float | None = None
    """Token-weighted training loss of the last step, rounded to five significant digits."""
    tokens_per_second: float | None = None
    """Non-padding training tokens per second over all devices."""
    learning_rate: float | None = None
    """Learning rate of the last step."""
    epoch: float | None = None
    """Passes over the training data so far."""
    world_size: int | None = None
    """Number of training processes, torch.distributed.get_world_size()."""
    engine: ShortText | None = None
    """Class name of the wrapped model, such as DeepSpeedEngine."""
    precision: ShortText | None = None
    """Number format that the job is trained in, which training.precision Auto leaves open."""
    last_checkpoint_step: int | None = None
    """Step of the newest complete checkpoint."""
    eval_loss: float | None = None
    """Held-out loss of the last evaluation during training."""
    mfu: float | None = None
    """Model FLOP/s utilisation, 0 to 1, where the profile has peakFlopsPerDevice."""
    peak_memory_bytes: int | None = None
    """Peak memory of a process on its device, in bytes."""
    stalled_since: Time | None = None
    """Since when a rank sends no heartbeat, RFC 3339 in UTC; absent while all ranks do."""
    eta_seconds: int | None = Field(default=None, ge=0)
    """Estimated seconds to the end of the stage; absent while nothing runs."""
    updated_at: Time | None = None
    """When the pod reported it, RFC 3339 in UTC."""


class EndpointRef(StatusModel):
    """Where the model is served."""

    name: ShortText
    """Name of the ModelEndpoint."""
    url: LongText
    """Base URL of the OpenAI API inside the cluster."""


class CheckpointStatus(StatusModel):
    """The newest complete checkpoint, from which a restart resumes."""

    step: int = Field(ge=0)
    """Optimizer steps that the checkpoint contains."""
    seconds: float | None = Field(default=None, ge=0)
    """Seconds from the decision to save until it was complete."""
    bytes: int | None = Field(default=None, ge=0)
    """Size of all its files in bytes."""


class NodeFailures(StatusModel):
    """A node on which attempts of this job failed."""

    name: ShortText
    """Name of the node."""
    failures: int = Field(ge=1)
    """Number of attempts that ended because of the node."""
    excluded: bool = False
    """Whether the operator keeps pods of this job off the node: from the second failure on, and
    from the first one that status.suspected records."""


class SuspectedNodes(StatusModel):
    """Where an attempt failed in a way that a broken device can cause as well as the job."""

    stage: StageName
    """Stage of the attempt."""
    attempt: int = Field(ge=1)
    """Number of the attempt."""
    reason: ShortText
    """Reason of its failure, LossNotFinite or OutOfMemory."""
    nodes: list[ShortText] = Field(default_factory=list, max_length=16)
    """Nodes that the next attempt avoids; where no other has free capacity, it uses them again.
    Empty where any of more than 16 nodes may have caused the failure."""


class FineTuneJobStatus(StatusModel):
    """State of the job, derived from its children."""

    observed_generation: int = Field(default=NOT_OBSERVED, ge=NOT_OBSERVED)
    """metadata.generation that this status was computed from; -1 before the operator has written
    one."""
    phase: Phase = "Pending"
    """State of the job in one word."""
    message: LongText = ""
    """State of the job in one line: what it does, what it waits for, or why it failed."""
    conditions: list[Condition] = Field(
        default_factory=list, max_length=16, json_schema_extra=list_map_key("type")
    )
    """Conditions of type Succeeded, Reconciling, Stalled, Suspended, Prepared, Trained, Evaluated,
    Exported and Deployed; docs/reasons.md explains their reasons."""
    stages: list[StageStatus] = Field(
        default_factory=list, max_length=8, json_schema_extra=list_map_key("name")
    )
    """The stages of this job in order."""
    plan: TrainPlan | None = None
    """What the planner chose for training."""
    progress: JobProgress | None = None
    """Progress of the running stage."""
    model: ModelFacts | None = None
    """What prepare reported about the model."""
    data: DataFacts | None = None
    """What prepare reported about the data."""
    reward: ModelFacts | None = None
    """What prepare reported about grpo.rewardModel."""
    training: TrainFacts | None = None
    """How training ended."""
    evaluation: EvaluationSummary | None = None
    """The tuned model compared with its base."""
    probe: ProbeRecord | None = None
    """Prompt and greedy answer of the tuned model, which the endpoint's new revision must
    repeat."""
    artifact: ArtifactRef | None = None
    """The exported model."""
    endpoint: EndpointRef | None = None
    """Where the model is served."""
    failure: Failure | None = None
    """Why the job failed, or why its last attempt failed."""
    restarts: int = Field(default=0, ge=0)
    """Failed attempts that count against maxRestarts."""
    checkpoint: CheckpointStatus | None = None
    """The checkpoint from which a restart of training resumes."""
    nodes: list[NodeFailures] = Field(
        default_factory=list, max_length=64, json_schema_extra=list_map_key("name")
    )
    """Nodes on which attempts failed; suspending and resuming the job clears the list."""
    suspected: SuspectedNodes | None = None
    """The attempt whose failure a broken device can cause, so that another one was tried on another
    node; suspending and resuming the job clears it."""
    workspace: WorkspaceFacts | None = None
    """What prepare measured on the workspace's volume."""
    suspended_at: Time | None = None
    """When the job was suspended, RFC 3339 in UTC; absent while it is not."""
    suspended_seconds: int = Field(default=0, ge=0)
    """Seconds that the job has spent suspended since it started, without the suspension that still
    lasts."""
    started_at: Time | None = None
    """When the first stage started, RFC 3339 in UTC."""
    finished_at: Time | None = None
    """When the job ended, RFC 3339 in UTC."""
    expires_at: Time | None = None
    """When the operator deletes the job that has ended, RFC 3339 in UTC; absent means never."""
