"""What decides the memory of a training step besides the model: read off a job and its data."""

from dataclasses import dataclass
from typing import Literal

from finetune_api.combinations import PAIRED, resolved
from finetune_api.finetunejob import GRPO, FineTuneJobSpec, Method, Objective
from finetune_api.run import DataFacts, ModelFacts
from finetune_api.training import Optimizer, Precision

Recomputation = Literal["None", "Selective", "Full"]


@dataclass(frozen=True)
class MemoryInputs:
    """One step of training."""

    method: Method
    objective: Objective
    optimizer: Optimizer
    precision: Precision
    recomputation: Recomputation
    """What is computed again in the backward pass instead of being kept."""
    rows: int
    """Sequences in one unit of a batch: two of a pair, else one."""
    sequence: int
    """Tokens of the longest sequence."""
    answer: int
    """Of these the tokens that GRPO writes; 0 for other objectives."""
    device: Literal["cuda", "cpu"]
    offload: bool = False
    beside: int = 0
    """Bytes of a reward model beside the one that is trained."""

    @property
    def number_bytes(self) -> int:
        """Bytes of a weight or an activation."""
        return number_bytes(self.precision)


def number_bytes(precision: Precision) -> int:
    """Bytes of a number in a format."""
    return 4 if precision == "fp32" else 2


def load_of(
    spec: FineTuneJobSpec,
    data: DataFacts,
    reward: ModelFacts | None,
    device: Literal["cuda", "cpu"],
) -> MemoryInputs:
    """The load of a job whose facts are known."""
    training = spec.training
    answer = (spec.grpo or GRPO()).max_new_tokens if spec.objective == "GRPO" else 0
    return MemoryInputs(
        method=spec.method,
        objective=spec.objective,
        optimizer=training.optimizer,
        precision=training.precision,
        recomputation=recomputation(spec),
        rows=2 if spec.objective in PAIRED else 1,
        sequence=_longest(spec, data, answer),
        answer=answer,
        device=device,
        offload=spec.compute.offload,
        beside=number_bytes(training.precision) * reward.parameters if reward else 0,
    )


def recomputation(spec: FineTuneJobSpec) -> Recomputation:
    """How much of the forward pass is done again in the backward pass."""
    if not resolved(spec.to_wire(), "gradientCheckpointing"):
        return "None"
    return "Selective" if spec.training.selective_checkpointing else "Full"


def _longest(spec: FineTuneJobSpec, data: DataFacts, answer: int) -> int:
    longest = spec.training.max_sequence_length
    return longest if data.packed else min(longest, max(1, data.longest_example) + answer)
