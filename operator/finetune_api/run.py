"""What the operator and a stage exchange: RunConfig in, Progress meanwhile, StageResult out.

RunConfig is the immutable run.json of one attempt. A pod serves Progress on /progress while its
stage runs. StageResult is the termination message (at most 4096 bytes); anything larger is a file
in the workspace, which the StageResult names with its SHA-256. The exit code is typed, so that the
operator can distinguish a user's error from a crash without reading logs.
"""

from collections.abc import Mapping
from enum import IntEnum
from functools import cached_property
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import ConfigDict, Field, StringConstraints

from finetune_api.base import LongText, ShortText, SpecModel, StatusModel
from finetune_api.jobspec import FineTuneJobSpec

T = TypeVar("T")

StageName = Literal["prepare", "train", "evaluate", "export", "serve"]
Strategy = Literal["DDP", "ZeRO1", "ZeRO2", "ZeRO3", "FSDP"]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$", max_length=71)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""A count that fits into an int64 field of a status."""

RUN_CONFIG_PATH = "/etc/finetune/run.json"
TERMINATION_PATH = "/dev/termination-log"
TERMINATION_MAX_BYTES = 4096
TELEMETRY_PORT = 9400
RENDEZVOUS_PORT = 29500
COLLECTIVE_TIMEOUT_ENV = "FINETUNE_COLLECTIVE_TIMEOUT"
"""Environment variable: seconds that a rank waits for the other ranks in a collective."""
SECRET_ENV_PREFIX = "FINETUNE_SECRET_"
MODEL_SECRET_PREFIX = SECRET_ENV_PREFIX + "MODEL_"
DATA_SECRET_PREFIXES = tuple(f"{SECRET_ENV_PREFIX}DATA_{index}_" for index in range(16))
"""One for each item of dataset.train, so that a source sees no other source's Secret."""
VALIDATION_SECRET_PREFIX = SECRET_ENV_PREFIX + "VALIDATION_"
REWARD_SECRET_PREFIX = SECRET_ENV_PREFIX + "REWARD_"

FINITE = ConfigDict(allow_inf_nan=False)
"""For models that are copied into a status: JSON has neither NaN nor infinity."""


class ExitCode(IntEnum):
    """Exit code of a stage's process, by which the operator decides about another attempt."""

    OK = 0
    USER_ERROR = 64
    """The input cannot work: the operator does not try again."""
    RETRYABLE = 75
    """Something outside the input failed: the operator tries again while restarts are left."""
    PREEMPTED = 76
    """Stopped on request after a checkpoint: the operator tries again and counts no restart."""


class ChatMessage(SpecModel):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    """Author of the turn."""
    content: Annotated[str, StringConstraints(max_length=8192)]
    """Text of the turn."""


class Failure(StatusModel):
    """Why a stage failed: what is wrong, where, and what to do."""

    stage: StageName | None = None
    """Stage that failed."""
    reason: ShortText
    """Machine-readable cause in CamelCase, such as ModelNotFound or BrokenRow; docs/reasons.md
    lists all of them."""
    message: LongText
    """What is wrong."""
    file: LongText | None = None
    """File in which the error is."""
    line: int | None = Field(default=None, ge=1)
    """Line of that file, counted from 1."""
    remedy: LongText | None = None
    """What to do."""
    attempt: int | None = Field(default=None, ge=1)
    """Attempt that failed."""


class ModelFacts(StatusModel):
    """Facts about a model that the planner needs, read from its config and weight files."""

    architecture: ShortText
    """Class name in config.json."""
    parameters: int = Field(ge=1)
    """Number of weights; tied weights count once."""
    layers: int = Field(ge=1)
    """Number of transformer blocks."""
    hidden_size: int = Field(ge=1)
    """Width of the residual stream."""
    intermediate_size: int = Field(ge=1)
    """Width of the feed-forward layer."""
    attention_heads: int = Field(ge=1)
    """Number of query heads."""
    key_value_heads: int = Field(ge=1)
    """Number of key and value heads."""
    vocabulary: int = Field(ge=1)
    """Rows of the embedding, including those for the job's new special tokens."""
    context_length: int = Field(ge=1)
    """Longest sequence in tokens that the model supports, multiplied by the job's model.rope."""
    weight_bytes: int = Field(ge=1)
    """Size of the weight files in bytes."""
    revision: ShortText | None = None
    """Resolved revision or fingerprint of the source."""
    folder: ShortText
    """Folder of the snapshot inside the model's cache entry."""


class DataFacts(StatusModel):
    """Facts about the data that the planner needs."""

    format: Literal["chat", "instruction", "completion", "preference", "unpaired", "prompt"]
    """Layout of the rows: dataset.format, or what auto detected."""
    packed: bool = False
    """Whether a sequence can hold several examples."""
    train_examples: int = Field(ge=0)
    """Number of training examples."""
    eval_examples: int = Field(ge=0)
    """Number of held-out examples."""
    train_tokens: int = Field(ge=0)
    """Tokens in the training examples."""
    eval_tokens: int = Field(ge=0)
    """Tokens in the held-out examples."""
    train_sequences: int = Field(ge=0)
    """Training sequences after packing; without packing one for each row, pair or prompt."""
    longest_example: int = Field(ge=0)
    """Tokens of the longest example before truncation."""
    truncated_examples: int = Field(default=0, ge=0)
    """Examples whose answer was cut to training.maxSequenceLength."""
    duplicate_examples: int = Field(default=0, ge=0)
    """Rows that repeat an earlier row."""
    date: ShortText | None = None
    """Day, YYYY-MM-DD, that every stage passes to a chat template that prints the current date;
    absent for templates that print none."""
    digest: Digest
    """SHA-256 over the source files."""


class WorkspaceFacts(StatusModel):
    """What prepare measured on the volume that holds checkpoints and artifacts."""

    free_bytes: int = Field(ge=0)
    """Free bytes after prepare wrote the data and the model."""
    write_bytes_per_second: float = Field(gt=0)
    """Measured bytes per second that one process writes and syncs to the volume."""


class MemoryEstimate(StatusModel):
    """Bytes on one device as the planner estimates them."""

    weights: int = Field(ge=0)
    """Bytes of the model's weights."""
    gradients: int = Field(ge=0)
    """Bytes of the gradients."""
    optimizer: int = Field(ge=0)
    """Bytes of fp32 master weights and optimizer states."""
    activations: int = Field(ge=0)
    """Bytes of the activations and logits of one micro-batch."""
    total: int = Field(ge=0)
    """Sum with overhead, in bytes."""
    available: int = Field(ge=0)
    """Memory of the device according to its profile, in bytes."""


class TrainPlan(StatusModel):
    """What the planner chose for training."""

    profile: ShortText
    """Name of the AcceleratorProfile that training runs on."""
    nodes: int = Field(ge=1)
    """Number of pods, one on each node."""
    gpus_per_node: int = Field(ge=1)
    """Training processes in each pod, one for each device."""
    world_size: int = Field(ge=1)
    """Training processes in all pods."""
    device: Literal["cuda", "cpu"]
    """Type of device that the processes compute on."""
    strategy: Strategy
    """How weights, gradients and optimizer states are distributed over the processes."""
    offload: bool = False
    """Whether optimizer states or shards are kept in host memory."""
    peak_flops: float | None = Field(default=None, gt=0)
    """Peak bf16 FLOP/s of one device, from the profile's peakFlopsPerDevice."""
    micro_batch_size: int = Field(ge=1)
    """Sequences in each forward pass of one process."""
    gradient_accumulation: int = Field(ge=1)
    """Forward passes of each process in one optimizer step."""
    batch_size: int = Field(ge=1)
    """Sequences in each optimizer step over all processes."""
    total_steps: int = Field(ge=1)
    """Optimizer steps of the whole training."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    memory: MemoryEstimate
    """Estimated memory on one device."""
    reason: LongText = ""
    """The plan and its memory in one line."""


class Paths(StatusModel):
    """Absolute folders inside the pod."""

    model_cache: str = "/workspace/model"
    """Cache entry of the base model: one folder for each snapshot; read-only after prepare."""
    job: str = "/workspace/job"
    """The job's own files: data/, checkpoints/, output/, report/, claims/."""
    artifact: str = "/workspace/artifact"
    """Folder that export writes the artifact to."""
    reward_cache: str = "/workspace/reward"
    """Cache entry of grpo.rewardModel, laid out like model_cache; mounted only for a job that
    names one."""
    volumes: str = "/pvc"
    """Folder below which the claims of pvc:// sources are mounted, by name."""


class JobRef(StatusModel):
    """The job that an attempt belongs to."""

    name: str
    """metadata.name."""
    namespace: str
    """metadata.namespace."""
    uid: str
    """metadata.uid."""


class RunConfig(StatusModel):
    """Input of a stage: the run.json of one attempt."""

    version: Literal[1] = 1
    """Version of this format."""
    job: JobRef
    """The job that the attempt belongs to."""
    stage: StageName
    """Stage that runs."""
    attempt: int = Field(ge=1)
    """Number of the attempt, counted from 1."""
    raw_spec: dict[str, Any] = Field(alias="spec")
    """The FineTuneJob's spec as the API server stored it. It stays as it is, so that a run.json
    keeps its bytes, and one whose spec is of another version of the operator can be read."""
    plan: TrainPlan | None = None
    """What the planner chose; absent for prepare."""
    model: ModelFacts | None = None
    """What prepare reported about the model; absent for prepare."""
    data: DataFacts | None = None
    """What prepare reported about the data; absent for prepare."""
    reward: ModelFacts | None = None
    """What prepare reported about grpo.rewardModel, whose snapshot is in paths.reward_cache."""
    evaluation: "EvaluationSummary | None" = None
    """Result of evaluate; only for export."""
    probe: "ProbeRecord | None" = None
    """Prompt and answer recorded by evaluate; only for export, which keeps it for the roll-out."""
    artifact_uri: str | None = None
    """pvc:// address that the artifact will have; only for export."""
    paths: Paths = Field(default_factory=Paths)
    """Folders inside the pod."""
    master_host: str | None = None
    """Host name of the pod with index 0; only for train."""

    @cached_property
    def spec(self) -> FineTuneJobSpec:
        """The spec with its defaults. Raises ValidationError for a spec of another version."""
        return FineTuneJobSpec.model_validate(self.raw_spec)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy, which may have another `raw_spec` and therefore another `spec`."""
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("spec", None)
        return copy

    def require_plan(self) -> TrainPlan:
        """The plan. Raises ValueError where run.json has none."""
        return self._require("plan", self.plan)

    def require_model(self) -> ModelFacts:
        """The facts about the model. Raises ValueError where run.json has none."""
        return self._require("model", self.model)

    def require_data(self) -> DataFacts:
        """The facts about the data. Raises ValueError where run.json has none."""
        return self._require("data", self.data)

    def require_reward(self) -> ModelFacts:
        """The facts about the reward model. Raises ValueError where run.json has none."""
        return self._require("reward", self.reward)

    def _require(self, name: str, value: T | None) -> T:
        if value is None:
            raise ValueError(f"run.json of {self.stage}, attempt {self.attempt}, has no {name}")
        return value


class RankProgress(StatusModel):
    """The heartbeat of one rank."""

    rank: int = Field(ge=0)
    """Rank of the process in torch.distributed."""
    host: str
    """Host name of the rank's pod."""
    step: int = Field(ge=0)
    """Optimizer steps that the rank has finished."""
    updated_at: float
    """Unix time in seconds of the heartbeat."""


class Progress(StatusModel):
    """What a pod reports on /progress while its stage runs."""

    stage: StageName
    """Stage that runs."""
    attempt: int = Field(ge=1)
    """Number of the attempt, counted from 1."""
    message: str = ""
    """What the stage does now, in a few words."""
    step: Count = 0
    """Optimizer steps (train) or items (other stages) that are done."""
    total_steps: Count | None = None
    """Steps or items in total, when known."""
    loss: float | None = None
    """Token-weighted training loss of the last step over all ranks."""
    grad_norm: float | None = None
    """Global L2 norm of the gradients before clipping."""
    learning_rate: float | None = None
    """Learning rate of the last step."""
    epoch: float | None = None
    """Passes over the training data so far."""
    tokens_per_second: float | None = None
    """Non-padding tokens per second over all ranks, smoothed."""
    eta_seconds: float | None = None
    """Estimated seconds to the end of the stage."""
    world_size: Count | None = None
    """torch.distributed.get_world_size()."""
    engine: ShortText | None = None
    """Class name of the wrapped model, such as DeepSpeedEngine."""
    last_checkpoint_step: Count | None = None
    """Step of the newest complete checkpoint; 0 when the attempt has found none."""
    checkpoint_seconds: float | None = None
    """Seconds from the decision to save until that checkpoint was complete."""
    checkpoint_bytes: Count | None = None
    """Size of all files of that checkpoint."""
    eval_loss: float | None = None
    """Held-out loss of the last evaluation for early stopping."""
    data_wait_share: float | None = None
    """Fraction of a step that waited for data, smoothed, 0 to 1; with GRPO sampled answers count as
    data."""
    mfu: float | None = None
    """Model FLOP/s utilisation, smoothed, 0 to 1 (Chowdhery et al. 2022, arXiv 2204.02311,
    appendix B)."""
    peak_memory_bytes: Count | None = None
    """Peak memory of this process in bytes: on its device, or resident on a CPU pool."""
    start_seconds: dict[str, float] | None = None
    """Seconds from the start of the pod's first process to the first step, by part."""
    measures: dict[str, float] = Field(default_factory=dict)
    """Further metrics of the objective or the model, by TRL's names, such as rewards/accuracies
    or expert_load/0."""
    ranks: list[RankProgress] = Field(default_factory=list)
    """Heartbeats of the ranks of this pod."""
    stalled: list[RankProgress] = Field(default_factory=list)
    """Ranks whose heartbeat has stopped; the first pod reports those of all pods."""
    updated_at: float = 0.0
    """Unix time in seconds of this report."""


class MetricPair(StatusModel):
    """A metric of both models."""

    model_config = FINITE

    base: float
    """Value of the base model."""
    tuned: float
    """Value of the tuned model."""


class LossComparison(StatusModel):
    """Held-out loss of both models, by the loss function of the objective."""

    model_config = FINITE

    base: float
    """Loss of the base model: nats per token for SFT and Completion, else the mean loss of a pair
    or an answer, with the base model itself as the reference."""
    tuned: float
    """Loss of the tuned model, in the same unit."""
    improvement_percent: float
    """100 * (base - tuned) / base."""
    low_percent: float
    """Lower end of the 95 % bootstrap interval of the improvement."""
    high_percent: float
    """Upper end of the 95 % bootstrap interval of the improvement."""
    tokens: int = Field(ge=0)
    """Tokens that were compared: of answers, or for a reward model of whole conversations."""


class GateOutcome(StatusModel):
    """One rule of the gate and its result."""

    metric: str
    """Metric of the rule."""
    required: str
    """Improvement that the rule requires."""
    measured: str
    """Improvement that was measured."""
    passed: bool
    """Whether the measured improvement is at least the required one."""


class EvaluationSummary(StatusModel):
    """The tuned model compared with its base."""

    loss: LossComparison | None = None
    """Held-out loss of the objective; absent for GRPO."""
    preference_accuracy: MetricPair | None = None
    """Fraction of held-out pairs whose better answer is preferred, 0 to 1. DPO compares
    log-probabilities, ORPO and KTO log-probabilities per token (KTO over all pairs of a desirable
    and an undesirable answer), Reward scores; the base model of Reward has the head that training
    began from."""
    reward: MetricPair | None = None
    """Mean of the weighted rewards of greedy answers to held-out prompts; only for GRPO."""
    exact_match: MetricPair | None = None
    """Fraction of answers that equal the reference after normalisation, 0 to 1."""
    rouge_l: MetricPair | None = None
    """Mean ROUGE-L F1 of the answers, 0 to 1 (Lin 2004)."""
    generations: int = Field(default=0, ge=0)
    """Number of prompts that both models answered."""
    gate: list[GateOutcome] = Field(default_factory=list)
    """Rules of the gate with their results."""
    passed: bool = True
    """Whether every rule of the gate passed."""


class ProbeRecord(StatusModel):
    """A prompt and the tuned model's greedy answer, for the parity check after roll-out."""

    messages: list[ChatMessage]
    """Conversation that was sent to the model."""
    answer: str
    """The model's answer, at most max_tokens long."""
    max_tokens: int = Field(ge=1)
    """Limit of generated tokens."""


class ArtifactRef(StatusModel):
    """The exported model."""

    uri: LongText
    """pvc://claim/path of the folder."""
    digest: Digest
    """SHA-256 of its manifest.json, which holds the SHA-256 of every file."""
    bytes: int = Field(ge=0)
    """Size of all its files in bytes."""


class TrainFacts(StatusModel):
    """How training ended."""

    model_config = FINITE

    steps: int = Field(ge=0)
    """Optimizer steps that are done."""
    resumed_from_step: int = Field(default=0, ge=0)
    """Step of the checkpoint that the attempt resumed from; 0 without one."""
    final_loss: float | None = None
    """Training loss of the last step."""
    tokens: int = Field(default=0, ge=0)
    """Non-padding tokens that this attempt trained on, over all ranks."""
    tokens_per_second: float | None = None
    """Mean over this attempt of the non-padding tokens per second of all ranks."""
    world_size: int = Field(ge=1)
    """torch.distributed.get_world_size()."""
    engine: ShortText
    """Class name of the wrapped model."""
    best_step: int | None = None
    """With early stopping: the step whose weights are the result."""
    best_eval_loss: float | None = None
    """Held-out loss at that step."""
    peak_memory_bytes: int | None = None
    """Peak memory of rank 0 in bytes."""
    mfu: float | None = None
    """Mean model FLOP/s utilisation, 0 to 1."""
    hosts: list[str] = Field(default_factory=list)
    """Host names of the pods, by node rank."""


class StageResult(StatusModel):
    """Result of a stage: the termination message of its pod."""

    stage: StageName
    """Stage that ran."""
    attempt: int = Field(ge=1)
    """Number of the attempt, counted from 1."""
    outcome: Literal["Succeeded", "Failed", "Preempted"]
    """How the stage ended."""
    failure: Failure | None = None
    """Why the stage failed."""
    model: ModelFacts | None = None
    """From prepare."""
    data: DataFacts | None = None
    """From prepare."""
    reward: ModelFacts | None = None
    """From prepare, about grpo.rewardModel."""
    workspace: WorkspaceFacts | None = None
    """From prepare."""
    train: TrainFacts | None = None
    """From train, written by the pod with index 0."""
    evaluation: EvaluationSummary | None = None
    """From evaluate."""
    probe: ProbeRecord | None = None
    """From evaluate."""
    artifact: ArtifactRef | None = None
    """From export."""
    report: ShortText | None = None
    """File with the full report, relative to the job's folder."""
    report_digest: Digest | None = None
    """SHA-256 of the report."""


RunConfig.model_rebuild()
