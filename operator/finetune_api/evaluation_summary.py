"""The result of evaluate: the tuned model compared with its base, and the probe of the roll-out."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import ShortText, SpecModel, StatusModel
from finetune_api.evaluation import BASE
from finetune_api.metrics import MetricName, Unit
from finetune_api.protocol import FINITE


class ChatMessage(SpecModel):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    """Author of the turn."""
    content: Annotated[str, StringConstraints(max_length=8192)]
    """Text of the turn."""


class MetricComparison(StatusModel):
    """One metric of the tuned model and of a baseline."""

    model_config = FINITE

    metric: MetricName
    """loss: the objective's, in nats per token for SFT and Completion, else the mean of a pair or
    an answer, with the base model itself as the reference. exactMatch: fraction of answers that
    equal the reference after evaluation.normalization. rougeL: mean ROUGE-L F1 (Lin 2004).
    preferenceAccuracy: fraction of held-out pairs whose better answer is preferred; DPO compares
    log-probabilities, ORPO, SimPO and KTO log-probabilities per token (KTO over all pairs of a
    desirable and an undesirable answer), Reward scores; the base model of Reward has the head that
    training began from. reward: mean of the weighted rewards of greedy answers to held-out
    prompts."""
    baseline: ShortText = BASE
    """base: the base model with the prompts of the rows; else the name of one of
    evaluation.baselines."""
    value: float
    """Value of the baseline."""
    tuned: float
    """Value of the tuned model."""
    improvement: float
    """How much better the tuned model is, in the unit of the metric: positive is better, for a loss
    too."""
    low: float
    """Lower end of the 95 % interval of the improvement."""
    high: float
    """Upper end of the 95 % interval of the improvement."""
    relative_percent: float | None = None
    """100 * improvement / value; only for loss and perplexity."""
    relative_low_percent: float | None = None
    """Lower end of the 95 % interval of the relative improvement."""
    relative_high_percent: float | None = None
    """Upper end of the 95 % interval of the relative improvement."""
    p_value: float | None = Field(default=None, ge=0, le=1)
    """Of McNemar's exact test that both models are right equally often; only for metrics that are 0
    or 1 for each item."""


class PromptComparison(StatusModel):
    """The tuned model compared with the base model under its best prompt."""

    metric: MetricName
    """Metric by which the best prompt was chosen: the first that compares answers."""
    baseline: ShortText
    """The best baseline by that metric; base, where no other prompt is better."""
    is_beaten: bool
    """Whether the tuned model is better: the lower end of the interval is above 0."""


class GateOutcome(StatusModel):
    """One rule of the gate and its result."""

    model_config = FINITE

    metric: MetricName
    """Metric of the rule."""
    baseline: ShortText = BASE
    """What the tuned model was compared with."""
    statistic: Literal["Bound", "Estimate"] = "Bound"
    """What was compared with the requirement: the lower end of the interval, or the estimate."""
    unit: Unit
    """Unit of the numbers: Percent of the baseline's value, Nats, Perplexity, Fraction from 0
    to 1, or Reward."""
    required: float
    """Improvement that the rule requires."""
    measured: float | None = None
    """Improvement that was measured; absent where the held-out rows do not have the metric."""
    low: float | None = None
    """Lower end of its 95 % interval."""
    high: float | None = None
    """Upper end of its 95 % interval."""
    passed: bool
    """Whether the low end, or the measured improvement, is at least the required one."""


class EvaluationSummary(StatusModel):
    """The tuned model compared with its base."""

    comparisons: list[MetricComparison] = Field(default_factory=list, max_length=16)
    """Every metric of the tuned model and its base, each with the interval of the difference; of
    the other baselines the first metric that compares answers. The evaluation report has all
    metrics of all baselines."""
    best_prompt: PromptComparison | None = None
    """Whether the tuned model is better than the best prompt; absent without
    evaluation.baselines."""
    tokens: int | None = Field(default=None, ge=0)
    """Tokens over which the loss was computed: of answers, or for a reward model of whole
    conversations."""
    generations: int = Field(default=0, ge=0)
    """Number of prompts that both models answered."""
    warnings: list[ShortText] = Field(default_factory=list, max_length=8)
    """What limits the comparison, such as few answers."""
    gate: list[GateOutcome] = Field(default_factory=list)
    """Rules of the gate with their results."""
    passed: bool = True
    """Whether every rule of the gate passed."""

    def find(self, metric: MetricName) -> MetricComparison | None:
        """The comparison with the base in one metric; None where it was not measured."""
        found = (each for each in self.comparisons if each.baseline == BASE)
        return next((each for each in found if each.metric == metric), None)


class ProbeRecord(StatusModel):
    """A prompt and the tuned model's greedy answer, for the parity check after roll-out."""

    messages: list[ChatMessage]
    """Conversation that was sent to the model."""
    answer: str
    """The model's answer, at most max_tokens long."""
    max_tokens: int = Field(ge=1)
    """Limit of generated tokens."""
