"""What the operator and a stage exchange: RunConfig in, Progress meanwhile, StageResult out.

RunConfig is the immutable run.json of one attempt. Progress is what a pod serves on
/progress. StageResult is the termination message (at most 4096 bytes); whatever is larger
lies in the workspace and is named here with its SHA-256. Exit codes are typed, so that the
operator can tell a user's error from a crash without reading logs.
"""

from enum import IntEnum
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, StringConstraints

from finetune_api.base import LongText, ShortText, SpecModel, StatusModel
from finetune_api.jobspec import FineTuneJobSpec

T = TypeVar("T")

StageName = Literal["prepare", "train", "evaluate", "export", "serve"]
Strategy = Literal["DDP", "ZeRO1", "ZeRO2", "ZeRO3", "FSDP"]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$", max_length=71)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""No larger than a status can hold."""

RUN_CONFIG_PATH = "/etc/finetune/run.json"
TERMINATION_PATH = "/dev/termination-log"
TERMINATION_MAX_BYTES = 4096
TELEMETRY_PORT = 9400
RENDEZVOUS_PORT = 29500
COLLECTIVE_TIMEOUT_ENV = "FINETUNE_COLLECTIVE_TIMEOUT"
"""Names the seconds that a rank waits for others in a training step."""
SECRET_ENV_PREFIX = "FINETUNE_SECRET_"
MODEL_SECRET_PREFIX = SECRET_ENV_PREFIX + "MODEL_"
DATA_SECRET_PREFIXES = tuple(f"{SECRET_ENV_PREFIX}DATA_{index}_" for index in range(16))
"""One for each item of dataset.train: every source sees its own Secret only."""
VALIDATION_SECRET_PREFIX = SECRET_ENV_PREFIX + "VALIDATION_"
REWARD_SECRET_PREFIX = SECRET_ENV_PREFIX + "REWARD_"


FINITE = ConfigDict(allow_inf_nan=False)
"""For what is copied into a status: JSON, and so the API server, knows neither."""


class ExitCode(IntEnum):
    """How a stage's process ends; the operator decides by this number."""

    OK = 0
    USER_ERROR = 64
    """The input cannot work: never tried again."""
    RETRYABLE = 75
    """Something outside the input failed: tried again while restarts are left."""
    PREEMPTED = 76
    """Stopped on request after a checkpoint: tried again, not counted."""


class ChatMessage(SpecModel):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    """Who speaks."""
    content: Annotated[str, StringConstraints(max_length=8192)]
    """What is said."""


class Failure(StatusModel):
    """Why it failed: what, where, and what to do."""

    stage: StageName | None = None
    """Stage that failed."""
    reason: ShortText
    """Machine-readable cause in CamelCase, such as ModelNotFound or BrokenRow."""
    message: LongText
    """What is wrong."""
    file: LongText | None = None
    """File that is wrong."""
    line: int | None = Field(default=None, ge=1)
    """Line of that file, counted from 1."""
    remedy: LongText | None = None
    """What to do."""
    attempt: int | None = Field(default=None, ge=1)
    """Attempt that failed."""


class ModelFacts(StatusModel):
    """What the planner must know of a model; read from its config and weight files."""

    architecture: ShortText
    """Class name in config.json."""
    parameters: int = Field(ge=1)
    """Weights, counted once where tied."""
    layers: int = Field(ge=1)
    """Transformer blocks."""
    hidden_size: int = Field(ge=1)
    """Width of the residual stream."""
    intermediate_size: int = Field(ge=1)
    """Width of the feed-forward layer."""
    attention_heads: int = Field(ge=1)
    """Query heads."""
    key_value_heads: int = Field(ge=1)
    """Key and value heads."""
    vocabulary: int = Field(ge=1)
    """Rows of the embedding, with those that the job's new special tokens need."""
    context_length: int = Field(ge=1)
    """Longest sequence in tokens that the model was made for, stretched by the job's rope."""
    weight_bytes: int = Field(ge=1)
    """Size of the weight files in bytes."""
    revision: ShortText | None = None
    """Resolved revision or fingerprint of the source."""
    folder: ShortText
    """Folder of the snapshot inside the model's cache entry."""


class DataFacts(StatusModel):
    """What the planner must know of the data."""

    format: Literal["chat", "instruction", "completion", "preference", "unpaired", "prompt"]
    """Layout of the rows as found."""
    packed: bool = False
    """Whether sequences hold several examples."""
    train_examples: int = Field(ge=0)
    """Rows to learn from."""
    eval_examples: int = Field(ge=0)
    """Rows held out."""
    train_tokens: int = Field(ge=0)
    """Tokens in the training rows."""
    eval_tokens: int = Field(ge=0)
    """Tokens in the held-out rows."""
    train_sequences: int = Field(ge=0)
    """Sequences after packing; without packing one for each row, pair or prompt."""
    longest_example: int = Field(ge=0)
    """Tokens of the longest row before cutting."""
    truncated_examples: int = Field(default=0, ge=0)
    """Rows whose answer was cut to maxSequenceLength."""
    duplicate_examples: int = Field(default=0, ge=0)
    """Rows that stood more than once."""
    date: ShortText | None = None
    """Day, YYYY-MM-DD, that every stage gives to a chat template that prints today's; absent
    where it prints none."""
    digest: Digest
    """SHA-256 over the source files."""


class WorkspaceFacts(StatusModel):
    """What prepare found out about the volume that holds checkpoints and artifacts."""

    free_bytes: int = Field(ge=0)
    """Bytes free after prepare had written everything."""
    write_bytes_per_second: float = Field(gt=0)
    """Measured: bytes written and made durable by one process, per second."""


class MemoryEstimate(StatusModel):
    """Bytes on one device as the planner estimates them."""

    weights: int = Field(ge=0)
    """Model weights."""
    gradients: int = Field(ge=0)
    """Gradients."""
    optimizer: int = Field(ge=0)
    """Master weights and AdamW moments."""
    activations: int = Field(ge=0)
    """Activations and logits of one micro-batch."""
    total: int = Field(ge=0)
    """All of it with overhead."""
    available: int = Field(ge=0)
    """What the device has."""


class TrainPlan(StatusModel):
    """What the planner chose for training."""

    profile: ShortText
    """AcceleratorProfile."""
    nodes: int = Field(ge=1)
    """Pods, one per node."""
    gpus_per_node: int = Field(ge=1)
    """Processes in each pod, one per device."""
    world_size: int = Field(ge=1)
    """Processes in all."""
    device: Literal["cuda", "cpu"]
    """What the processes compute on."""
    strategy: Strategy
    """How model and optimizer are spread."""
    offload: bool = False
    """Whether optimizer states or shards live in host memory."""
    peak_flops: float | None = Field(default=None, gt=0)
    """Peak bf16 FLOP/s of one device, as its profile tells."""
    micro_batch_size: int = Field(ge=1)
    """Sequences per process and forward pass."""
    gradient_accumulation: int = Field(ge=1)
    """Forward passes per optimizer step."""
    batch_size: int = Field(ge=1)
    """Sequences per optimizer step over all processes."""
    total_steps: int = Field(ge=1)
    """Optimizer steps."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    memory: MemoryEstimate
    """Memory on one device."""
    reason: LongText = ""
    """Why this plan, in one line."""


class Paths(StatusModel):
    """Absolute folders inside the pod."""

    model_cache: str = "/workspace/model"
    """Cache entry of the base model: one folder per snapshot; read-only after prepare."""
    job: str = "/workspace/job"
    """What belongs to this job: data/, checkpoints/, output/, report/, claims/."""
    artifact: str = "/workspace/artifact"
    """Where export writes."""
    reward_cache: str = "/workspace/reward"
    """Cache entry of grpo.rewardModel, laid out as model_cache; only there where one is named."""
    volumes: str = "/pvc"
    """Claims that pvc:// sources name are mounted below, by name."""


class JobRef(StatusModel):
    """The job that an attempt belongs to."""

    name: str
    """metadata.name."""
    namespace: str
    """metadata.namespace."""
    uid: str
    """metadata.uid."""


class RunConfig(StatusModel):
    """What a stage is given: the run.json of one attempt."""

    version: Literal[1] = 1
    """Version of this format."""
    job: JobRef
    """The job."""
    stage: StageName
    """The stage."""
    attempt: int = Field(ge=1)
    """The attempt, counted from 1."""
    raw_spec: dict[str, Any] = Field(alias="spec")
    """The FineTuneJob's spec as the API server stored it. It stays as it is, so that a run.json
    keeps its bytes, and one whose spec is of another version of the operator can be read."""
    plan: TrainPlan | None = None
    """The plan; absent for prepare."""
    model: ModelFacts | None = None
    """Result of prepare; absent for prepare."""
    data: DataFacts | None = None
    """Result of prepare; absent for prepare."""
    reward: ModelFacts | None = None
    """Result of prepare about grpo.rewardModel, whose snapshot lies in paths.reward_cache."""
    evaluation: "EvaluationSummary | None" = None
    """Result of evaluate; only for export."""
    probe: "ProbeRecord | None" = None
    """Prompt and answer recorded by evaluate; only for export, kept for the roll-out."""
    artifact_uri: str | None = None
    """pvc:// address that the artifact will have; only for export."""
    paths: Paths = Field(default_factory=Paths)
    """Folders inside the pod."""
    master_host: str | None = None
    """Host name of the pod with index 0; only for train."""

    @property
    def spec(self) -> FineTuneJobSpec:
        """The spec with its defaults. Raises ValidationError for a spec of another version."""
        return FineTuneJobSpec.model_validate(self.raw_spec)

    def require_plan(self) -> TrainPlan:
        """The plan. Raises ValueError where run.json has none."""
        return self._required("plan", self.plan)

    def require_model(self) -> ModelFacts:
        """The facts about the model. Raises ValueError where run.json has none."""
        return self._required("model", self.model)

    def require_data(self) -> DataFacts:
        """The facts about the data. Raises ValueError where run.json has none."""
        return self._required("data", self.data)

    def _required(self, name: str, value: T | None) -> T:
        if value is None:
            raise ValueError(f"run.json of {self.stage}, attempt {self.attempt}, has no {name}")
        return value


class RankProgress(StatusModel):
    """The heartbeat of one rank."""

    rank: int = Field(ge=0)
    """Rank in torch.distributed."""
    host: str
    """Host name of its pod."""
    step: int = Field(ge=0)
    """Optimizer steps done."""
    updated_at: float
    """Unix time in seconds of the heartbeat."""


class Progress(StatusModel):
    """What a pod tells on /progress while its stage runs."""

    stage: StageName
    """The stage."""
    attempt: int = Field(ge=1)
    """The attempt."""
    message: str = ""
    """What it does now, in a few words."""
    step: Count = 0
    """Optimizer steps, or items done."""
    total_steps: Count | None = None
    """Steps or items in all, when known."""
    loss: float | None = None
    """Token-weighted training loss of the last step over all ranks."""
    grad_norm: float | None = None
    """Global L2 norm of the gradients before clipping."""
    learning_rate: float | None = None
    """Learning rate of the last step."""
    epoch: float | None = None
    """Passes over the data so far."""
    tokens_per_second: float | None = None
    """Non-padding tokens per second over all ranks, smoothed."""
    eta_seconds: float | None = None
    """Seconds to the end of the stage."""
    world_size: Count | None = None
    """torch.distributed.get_world_size()."""
    engine: ShortText | None = None
    """Class name of the wrapped model, such as DeepSpeedEngine."""
    last_checkpoint_step: Count | None = None
    """Step of the newest complete checkpoint; 0 when the attempt has looked and there is none."""
    checkpoint_seconds: float | None = None
    """Seconds from the decision to save until that checkpoint was complete."""
    checkpoint_bytes: Count | None = None
    """Size of all files of that checkpoint."""
    eval_loss: float | None = None
    """Held-out loss as early stopping last saw it."""
    data_wait_share: float | None = None
    """Share of a step that waited for data, smoothed, 0 to 1; with GRPO answers are data."""
    mfu: float | None = None
    """Model FLOP/s utilisation, smoothed, 0 to 1 (Chowdhery et al. 2022, arXiv 2204.02311,
    appendix B)."""
    peak_memory_bytes: Count | None = None
    """Most memory that this process has held: of the device, or resident on a CPU."""
    start_seconds: dict[str, float] | None = None
    """Seconds from the start of the pod's first process to the first step, by part."""
    measures: dict[str, float] = Field(default_factory=dict)
    """Further measures of the objective or the model, by TRL's names, such as rewards/accuracies
    or expert_load/0."""
    ranks: list[RankProgress] = Field(default_factory=list)
    """Heartbeats of the ranks of this pod."""
    stalled: list[RankProgress] = Field(default_factory=list)
    """Ranks that give no sign of life; the first pod names those of all pods."""
    updated_at: float = 0.0
    """Unix time in seconds."""


class MetricPair(StatusModel):
    """A metric of both models."""

    model_config = FINITE

    base: float
    """The base model's."""
    tuned: float
    """The tuned model's."""


class LossComparison(StatusModel):
    """Held-out loss of both models, by the loss that was trained."""

    model_config = FINITE

    base: float
    """Loss of the base model: nats per token for SFT and Completion, else the mean loss of a pair
    or an answer, with the base itself as the reference."""
    tuned: float
    """The same of the tuned model."""
    improvement_percent: float
    """100 * (base - tuned) / base."""
    low_percent: float
    """Lower end of the 95 % bootstrap interval of the improvement."""
    high_percent: float
    """Upper end of it."""
    tokens: int = Field(ge=0)
    """Tokens compared: of answers, or for a reward model of whole conversations."""


class GateOutcome(StatusModel):
    """One rule of the gate and how it went."""

    metric: str
    """Metric of the rule."""
    required: str
    """Least improvement of the rule."""
    measured: str
    """Improvement as measured."""
    passed: bool
    """Whether the rule holds."""


class EvaluationSummary(StatusModel):
    """The tuned model compared with its base."""

    loss: LossComparison | None = None
    """Held-out loss of the objective; absent for GRPO."""
    preference_accuracy: MetricPair | None = None
    """Share of held-out pairs whose better answer is preferred, 0 to 1: by log-probability, by it
    per token for ORPO and KTO (KTO: all pairs of a desirable and an undesirable answer), by score
    for Reward, whose base has the head that training began from."""
    reward: MetricPair | None = None
    """Mean of the weighted rewards of greedy answers to held-out prompts; only for GRPO."""
    exact_match: MetricPair | None = None
    """Share of answers equal to the reference after normalisation, 0 to 1."""
    rouge_l: MetricPair | None = None
    """Mean ROUGE-L F1 of the answers, 0 to 1 (Lin 2004)."""
    generations: int = Field(default=0, ge=0)
    """Prompts answered by both."""
    gate: list[GateOutcome] = Field(default_factory=list)
    """Rules of the gate and how they went."""
    passed: bool = True
    """Whether every rule holds."""


class ProbeRecord(StatusModel):
    """A prompt and the tuned model's greedy answer, for the parity check after roll-out."""

    messages: list[ChatMessage]
    """The conversation."""
    answer: str
    """The answer, cut to max_tokens."""
    max_tokens: int = Field(ge=1)
    """Tokens that were generated at most."""


class ArtifactRef(StatusModel):
    """The exported model."""

    uri: LongText
    """pvc://claim/path of the folder."""
    digest: Digest
    """SHA-256 of its manifest.json, which holds the SHA-256 of every file."""
    bytes: int = Field(ge=0)
    """Size of all files."""


class TrainFacts(StatusModel):
    """How training ended."""

    model_config = FINITE

    steps: int = Field(ge=0)
    """Optimizer steps done."""
    resumed_from_step: int = Field(default=0, ge=0)
    """Step of the checkpoint that this attempt started from; 0 for none."""
    final_loss: float | None = None
    """Training loss of the last step."""
    tokens: int = Field(default=0, ge=0)
    """Non-padding tokens trained on by this attempt, over all ranks."""
    tokens_per_second: float | None = None
    """Mean of this attempt."""
    world_size: int = Field(ge=1)
    """torch.distributed.get_world_size()."""
    engine: ShortText
    """Class name of the wrapped model."""
    best_step: int | None = None
    """With early stopping: the step whose weights are the result."""
    best_eval_loss: float | None = None
    """Held-out loss at that step."""
    peak_memory_bytes: int | None = None
    """Most memory that rank 0 has held."""
    mfu: float | None = None
    """Mean model FLOP/s utilisation, 0 to 1."""
    hosts: list[str] = Field(default_factory=list)
    """Host names of the pods, by node rank."""


class StageResult(StatusModel):
    """What a stage ends with: its termination message."""

    stage: StageName
    """The stage."""
    attempt: int = Field(ge=1)
    """The attempt."""
    outcome: Literal["Succeeded", "Failed", "Preempted"]
    """How it ended."""
    failure: Failure | None = None
    """Why it failed."""
    model: ModelFacts | None = None
    """From prepare."""
    data: DataFacts | None = None
    """From prepare."""
    reward: ModelFacts | None = None
    """From prepare, about grpo.rewardModel."""
    workspace: WorkspaceFacts | None = None
    """From prepare."""
    train: TrainFacts | None = None
    """From train, index 0."""
    evaluation: EvaluationSummary | None = None
    """From evaluate."""
    probe: ProbeRecord | None = None
    """From evaluate."""
    artifact: ArtifactRef | None = None
    """From export."""
    report: ShortText | None = None
    """File below the job's folder with the full report."""
    report_digest: Digest | None = None
    """SHA-256 of the report."""


RunConfig.model_rebuild()
