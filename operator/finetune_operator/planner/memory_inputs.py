"""What decides the memory of a training step besides the model: read from a job and its data."""

from dataclasses import dataclass
from typing import Literal

from finetune_api.combinations import PAIR_OBJECTIVES, resolve_switch
from finetune_api.facts import DataFacts, ModelFacts
from finetune_api.finetunejob import GRPO, FineTuneJobSpec, Method, Objective
from finetune_api.training import ComputePrecision, Optimizer, Precision

Recomputation = Literal["None", "Selective", "Full"]


@dataclass(frozen=True)
class MemoryInputs:
    """One training step."""

    method: Method
    objective: Objective
    optimizer: Optimizer
    precision: ComputePrecision
    recomputation: Recomputation
    """What the backward pass computes again instead of keeping it."""
    sequences_per_sample: int
    """2 for preference pairs, else 1."""
    sequence_length: int
    """Tokens of the longest sequence, prompt and completion together."""
    completion_length: int
    """The tokens of `sequence_length` that GRPO samples; 0 for other objectives."""
    device: Literal["cuda", "cpu"]
    offload: bool = False
    reward_model_bytes: int = 0
    """Weights of a reward model on the same device as the trained model."""

    @property
    def dtype_bytes(self) -> int:
        """Bytes of a weight or an activation."""
        return dtype_bytes(self.precision)


def dtype_bytes(precision: ComputePrecision) -> int:
    """Bytes of a number in a format."""
    return 4 if precision == "fp32" else 2


def possible_precisions(
    precision: Precision, device: Literal["cuda", "cpu"]
) -> tuple[ComputePrecision, ...]:
    """The formats in which a job may be trained, the one with the largest weights first.

    Auto is decided on the node: a CPU may compute fp32 or bf16 faster, GPUs compute bf16.
    """
    if precision != "Auto":
        return (precision,)
    return ("bf16",) if device == "cuda" else ("fp32", "bf16")


def collect_memory_inputs(
    spec: FineTuneJobSpec,
    data: DataFacts,
    reward: ModelFacts | None,
    device: Literal["cuda", "cpu"],
) -> MemoryInputs:
    """The memory inputs of a job whose facts are known, in the first of `possible_precisions`."""
    training = spec.training
    precision = possible_precisions(training.precision, device)[0]
    completion = (spec.grpo or GRPO()).max_new_tokens if spec.objective == "GRPO" else 0
    length = training.max_sequence_length
    if not data.packed:
        length = min(length, max(1, data.longest_example) + completion)
    return MemoryInputs(
        method=spec.method,
        objective=spec.objective,
        optimizer=training.optimizer,
        precision=precision,
        recomputation=choose_recomputation(spec),
        sequences_per_sample=2 if spec.objective in PAIR_OBJECTIVES else 1,
        sequence_length=length,
        completion_length=completion,
        device=device,
        offload=spec.compute.offload,
        reward_model_bytes=dtype_bytes(precision) * reward.parameters if reward else 0,
    )


def choose_recomputation(spec: FineTuneJobSpec) -> Recomputation:
    """How much of the forward pass the backward pass computes again."""
    if not resolve_switch(spec.to_wire(), "gradientCheckpointing"):
        return "None"
    return "Selective" if spec.training.selective_checkpointing else "Full"
