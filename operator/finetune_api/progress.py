"""Progress: what a pod serves on /progress while its stage runs."""

from pydantic import Field

from finetune_api.base import ShortText, StatusModel
from finetune_api.protocol import Count, StageName


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
    precision: ShortText | None = None
    """Number format that the job is trained in, which training.precision Auto leaves open."""
    last_checkpoint_step: Count | None = None
    """Step of the newest complete checkpoint; 0 when the attempt has found none."""
    checkpoint_seconds: float | None = None
    """Seconds from the decision to save until that checkpoint was complete."""
    checkpoint_bytes: Count | None = None
    """Size of all files of that checkpoint."""
    eval_loss: float | None = None
    """Held-out loss of the last evaluation during training."""
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
