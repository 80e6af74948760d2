"""What the planner chose for training."""

from typing import Literal

from pydantic import Field

from finetune_api.base import LongText, ShortText, StatusModel
from finetune_api.protocol import Strategy


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
