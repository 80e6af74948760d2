"""The result of evaluate: the tuned model beside its base, and the probe of the roll-out."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import SpecModel, StatusModel
from finetune_api.protocol import FINITE


class ChatMessage(SpecModel):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    """Author of the turn."""
    content: Annotated[str, StringConstraints(max_length=8192)]
    """Text of the turn."""


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
    log-probabilities, ORPO, SimPO and KTO log-probabilities per token (KTO over all pairs of a
    desirable and an undesirable answer), Reward scores; the base model of Reward has the head that
    training began from."""
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
