"""How the tuned model is compared with its base, and which improvements the gate requires."""

from typing import Literal

from pydantic import Field, JsonValue

from finetune_api.base import Percent, SpecModel, cel, validation_config
from finetune_api.metrics import METRICS, MetricName, names_by_objectives

RATIO_METRICS = [name for name, metric in METRICS.items() if metric.is_ratio_scale]
FRACTIONS = [name for name, metric in METRICS.items() if metric.unit == "Fraction"]


class GateRule(SpecModel):
    """A minimum improvement; a job that misses it fails and serves nothing."""

    model_config = validation_config(
        cel(
            "has(self.minImprovement) != has(self.minRelativeImprovement)",
            "a rule of evaluation.gate has either minImprovement or minRelativeImprovement; give "
            "one of them",
        ),
        cel(
            f"!has(self.minRelativeImprovement) || self.metric in {RATIO_METRICS}",
            "an improvement relative to the baseline is defined only for metrics that are always "
            f"above 0: {', '.join(RATIO_METRICS)}; use minImprovement, in the unit of the metric",
            ".minRelativeImprovement",
        ),
        cel(
            f"!has(self.minImprovement) || !(self.metric in {FRACTIONS}) || "
            "(self.minImprovement >= -1.0 && self.minImprovement <= 1.0)",
            f"{', '.join(FRACTIONS)} are fractions from 0 to 1; write 0.05 for five percentage "
            "points",
            ".minImprovement",
        ),
    )

    metric: MetricName
    """loss: held-out loss of the objective, in nats (all but GRPO); exactMatch and rougeL (SFT) and
    preferenceAccuracy (DPO, KTO, ORPO, SimPO, Reward): fractions from 0 to 1; reward (GRPO): mean
    reward of an answer."""
    min_relative_improvement: Percent | None = None
    """Minimum improvement in percent of the baseline's value, such as 2%; only for loss. A negative
    value allows a regression of that size."""
    min_improvement: float | None = Field(default=None, ge=-1000, le=1000)
    """Minimum improvement in the unit of the metric: nats, a fraction (0.05 is five percentage
    points) or reward. Lower is better for loss, higher for the others; a negative value allows a
    regression of that size."""
    statistic: Literal["Bound", "Estimate"] = "Bound"
    """What must be at least the minimum: Bound is the lower end of the 95 % interval of the
    improvement, so that chance alone rarely passes; Estimate is the improvement itself."""


class Evaluation(SpecModel):
    """How the tuned model is compared with its base model."""

    max_samples: int = Field(default=512, ge=1, le=100000)
    """Maximum number of held-out rows for the loss."""
    generations: int = Field(default=64, ge=3, le=10000)
    """Maximum number of held-out prompts that both models answer, for exactMatch, rougeL and
    reward. A fraction of 64 answers has a standard error of up to six percentage points, of 400
    answers of up to two and a half."""
    max_new_tokens: int = Field(default=128, ge=1, le=8192)
    """Maximum length of an answer in tokens; for GRPO at least grpo.maxNewTokens."""
    gate: list[GateRule] = Field(default_factory=list, max_length=8)
    """Rules that the tuned model must pass, all of them; without a rule every model passes."""


def objective_rule() -> dict[str, JsonValue]:
    """The rule of a job's spec that its objective measures the metrics of the gate."""
    groups = list(names_by_objectives())
    measured = " && ".join(
        f"(!(g.metric in {names}) || self.objective in {list(objectives)})"
        for objectives, names in groups
    )
    listed = "; ".join(
        f"{', '.join(names)} for {', '.join(objectives)}" for objectives, names in groups
    )
    return cel(
        f"self.evaluation.gate.all(g, {measured})",
        f"evaluation.gate has a metric that the objective does not measure; there is {listed}",
        ".evaluation.gate",
    )
