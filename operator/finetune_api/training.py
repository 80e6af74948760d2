"""How a job trains: length, batch, optimizer, precision, checkpoints, and when it stops.

What is left out here the planner or the method decides, and status.plan tells.
"""

from typing import Literal

from pydantic import Field

from finetune_api.base import SpecModel

Optimizer = Literal["AdamW", "AdamW8bit", "PagedAdamW", "PagedAdamW8bit", "Adafactor"]
Precision = Literal["bf16", "fp16", "fp32"]


class Checkpointing(SpecModel):
    """When the run is saved so that it can be resumed."""

    interval_steps: int = Field(default=100, ge=1, le=1000000)
    """Optimizer steps between checkpoints; one is always saved at the end."""
    interval_minutes: int | None = Field(default=None, ge=1, le=1440)
    """Also save when the last checkpoint is this old."""
    keep_last: int = Field(default=2, ge=1, le=100)
    """Newest complete checkpoints that are kept; with earlyStopping the best one is kept too."""


class EarlyStopping(SpecModel):
    """Stop when the held-out loss no longer falls, and promote the best checkpoint."""

    every_steps: int = Field(default=50, ge=1, le=1000000)
    """Optimizer steps between looks at the held-out loss, of at most evaluation.maxSamples rows;
    the last step is looked at too."""
    patience: int = Field(default=3, ge=1, le=100)
    """Looks without improvement after which training ends."""
    min_improvement: float = Field(default=0.0, ge=0, le=10)
    """Nats by which the loss must fall to count as better."""


class Training(SpecModel):
    """How it is trained."""

    epochs: int = Field(default=3, ge=1, le=1000)
    """Passes over the training data."""
    max_steps: int | None = Field(default=None, ge=1, le=100000000)
    """Stop after this many optimizer steps even when epochs are left."""
    batch_size: int = Field(default=16, ge=1, le=65536)
    """Sequences per optimizer step over all devices, pairs of them for DPO, ORPO and Reward; for
    GRPO answers, so a multiple of grpo.generations: batchSize / generations prompts a step."""
    micro_batch_size: int | None = Field(default=None, ge=1, le=4096)
    """Sequences per device and forward pass; absent means the planner chooses."""
    learning_rate: float | None = Field(default=None, gt=0, le=1)
    """Peak learning rate; absent means, by method, 1e-5 for Full, 1e-4 for LoRA, QLoRA and DoRA,
    5e-4 for AdaLoRA, 3e-3 for IA3 and 1e-2 for Prefix, and of that half for ORPO and a tenth for
    DPO, KTO and GRPO."""
    optimizer: Optimizer = "AdamW"
    """AdamW (fused); 8-bit states take a quarter of the memory (Dettmers et al. 2021, arXiv
    2110.02861); paged ones move to host memory under pressure; Adafactor (Shazeer and Stern 2018,
    arXiv 1804.04235) keeps one number per row and column."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Course of the learning rate after warm-up; wsd stays constant and then decays (Hu et al.
    2024, arXiv 2404.06395)."""
    decay_ratio: float = Field(default=0.1, gt=0, le=1)
    """With wsd: share of all steps over which the rate decays to zero at the end."""
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    """Share of all steps over which the learning rate rises linearly from zero."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0, le=1000)
    """Gradients are clipped to this global L2 norm."""
    max_sequence_length: int = Field(default=2048, ge=16, le=1048576)
    """Longest row in tokens, with GRPO prompt and answer together; a longer answer is cut, a longer
    prompt is an error, and longer plain text goes on in the next row."""
    packing: bool | None = None
    """Fill rows with several examples that do not see each other; absent means wherever
    objective, method and architecture allow it."""
    precision: Precision = "bf16"
    """Number format of weights and activations; optimizer states are kept in fp32. fp16 scales
    the loss, for devices without bf16."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass to save memory; absent means wherever the
    method allows it."""
    selective_checkpointing: bool = False
    """Recompute only what is cheap: keep the results of matrix products and attention (Korthikanti
    et al. 2022, arXiv 2205.05198, section 5)."""
    compile: bool = False
    """Compile every transformer block with torch.compile: a slower start, then faster steps."""
    neftune_alpha: float | None = Field(default=None, gt=0, le=100)
    """Noise on the embeddings during training (Jain et al. 2023, arXiv 2310.05914); 5 is usual."""
    early_stopping: EarlyStopping | None = None
    """Absent means that all steps are trained and the last one is the result."""
    seed: int = Field(default=42, ge=0, le=4294967295)
    """Seed of order, dropout and initialisation."""
    checkpoint: Checkpointing = Field(default_factory=Checkpointing)
    """When the run is saved."""
