"""How a job trains: length, batch, optimizer, precision, checkpoints, and when it stops.

The planner or the method chooses what a job leaves out; status.plan shows what the planner chose.
"""

from typing import Literal

from pydantic import Field

from finetune_api.base import SpecModel

Optimizer = Literal["AdamW", "AdamW8bit", "PagedAdamW", "PagedAdamW8bit", "Adafactor"]
ComputePrecision = Literal["bf16", "fp16", "fp32"]
Precision = Literal["Auto", ComputePrecision]


class Checkpointing(SpecModel):
    """When training saves a checkpoint to resume from."""

    interval_steps: int = Field(default=100, ge=1, le=1000000)
    """Optimizer steps between checkpoints; training always saves one at its end."""
    interval_minutes: int | None = Field(default=None, ge=1, le=1440)
    """Minutes after which training saves a checkpoint even before intervalSteps; absent means
    never."""
    keep_last: int = Field(default=2, ge=1, le=100)
    """Number of newest complete checkpoints to keep; earlyStopping keeps the best one too."""


class EarlyStopping(SpecModel):
    """Stop when the held-out loss no longer falls, and take the weights of the best checkpoint."""

    every_steps: int = Field(default=50, ge=1, le=1000000)
    """Optimizer steps between evaluations of the held-out loss, on at most evaluation.maxSamples
    rows; the last step is evaluated too."""
    patience: int = Field(default=3, ge=1, le=100)
    """Evaluations without improvement after which training ends."""
    min_improvement: float = Field(default=0.0, ge=0, le=10)
    """Decrease of the loss, in nats, that counts as an improvement."""


class Training(SpecModel):
    """Hyperparameters of training."""

    epochs: int = Field(default=3, ge=1, le=1000)
    """Passes over the training data."""
    max_steps: int | None = Field(default=None, ge=1, le=100000000)
    """Optimizer steps after which training stops even when epochs are left; absent means no
    limit."""
    batch_size: int = Field(default=16, ge=1, le=65536)
    """Sequences in each optimizer step over all devices; pairs of sequences for DPO, ORPO, SimPO
    and Reward. For GRPO it counts answers and must be a multiple of grpo.generations: a step takes
    batchSize / generations prompts."""
    micro_batch_size: int | None = Field(default=None, ge=1, le=4096)
    """Sequences in each forward pass of a device; absent means that the planner chooses."""
    learning_rate: float | None = Field(default=None, gt=0, le=1)
    """Peak learning rate; absent means, by method, 1e-5 for Full, 1e-4 for LoRA, QLoRA and DoRA,
    5e-4 for AdaLoRA, 3e-3 for IA3 and 1e-2 for Prefix, of which ORPO takes half, DPO, KTO and
    GRPO a tenth and SimPO a twentieth."""
    optimizer: Optimizer = "AdamW"
    """AdamW is fused. The 8-bit optimizers keep their states in a quarter of the memory (Dettmers
    et al. 2021, arXiv 2110.02861), the paged ones move them to host memory when the device's is
    full. Adafactor keeps one number for each row and column (Shazeer and Stern 2018, arXiv
    1804.04235)."""
    adam_beta1: float | None = Field(default=None, ge=0, lt=1)
    """Decay of AdamW's mean of gradients, of every variant of AdamW; absent means 0.9."""
    adam_beta2: float | None = Field(default=None, ge=0, lt=1)
    """Decay of AdamW's mean of squared gradients; absent means 0.999. A lower value, such as 0.95,
    forgets spikes sooner."""
    adam_epsilon: float | None = Field(default=None, gt=0, le=1)
    """Term that AdamW adds to the root of the mean of squared gradients; absent means 1e-8."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Schedule of the learning rate after warm-up; wsd stays constant and then decays (Hu et al.
    2024, arXiv 2404.06395)."""
    decay_ratio: float = Field(default=0.1, gt=0, le=1)
    """With wsd: fraction of all steps, at the end, over which the learning rate decays to zero."""
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    """Fraction of all steps over which the learning rate rises linearly from zero."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0, le=1000)
    """Global L2 norm to which gradients are clipped."""
    max_sequence_length: int = Field(default=2048, ge=16, le=1048576)
    """Maximum length of a sequence in tokens; with GRPO of prompt and answer together. A longer
    answer is cut, a longer prompt is an error, and longer plain text continues in the next
    sequence."""
    packing: bool | None = None
    """Fill sequences with several examples that do not attend to each other; absent means wherever
    objective, method and architecture allow it."""
    precision: Precision = "Auto"
    """Number format of weights and activations; optimizer states stay in fp32. Auto takes bf16
    where the devices compute it fast, and else fp32, as on CPUs without bf16 instructions: the
    first attempt measures it, later ones keep it, and status.progress.precision shows it. fp16 is
    for devices without bf16 and scales the loss."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass to save memory; absent means wherever the
    method allows it."""
    selective_checkpointing: bool = False
    """Recompute only cheap operations, and keep the results of matrix products and attention
    (Korthikanti et al. 2022, arXiv 2205.05198, section 5)."""
    compile: bool = False
    """Compile every transformer block with torch.compile: training starts later, and its steps are
    faster."""
    neftune_alpha: float | None = Field(default=None, gt=0, le=100)
    """Scale of the noise that NEFTune adds to the embeddings during training (Jain et al. 2023,
    arXiv 2310.05914), usually 5; absent means no noise."""
    early_stopping: EarlyStopping | None = None
    """When training stops early; absent means that it runs all steps and the last one is the
    result."""
    eval_steps: int | None = Field(default=None, ge=1, le=1000000)
    """Optimizer steps between evaluations of the held-out loss in a run without early stopping, on
    at most evaluation.maxSamples rows; the last step is evaluated too. Absent means none."""
    seed: int = Field(default=42, ge=0, le=4294967295)
    """Seed of the data's order, of dropout and of initialisation."""
    checkpoint: Checkpointing = Field(default_factory=Checkpointing)
    """When training saves checkpoints, and how many it keeps."""
