"""How the tuned model is compared with its base, and which improvements the gate requires."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, JsonValue, StringConstraints

from finetune_api.base import (
    LIST_SET,
    ChildName,
    Percent,
    SpecModel,
    cel,
    list_map_key,
    validation_config,
)
from finetune_api.metrics import METRICS, MetricName, names_by_objectives

RATIO_METRICS = [name for name, metric in METRICS.items() if metric.is_ratio_scale]
FRACTIONS = [name for name, metric in METRICS.items() if metric.unit == "Fraction"]
ANSWER_METRICS = [name for name, metric in METRICS.items() if metric.is_of_answers]
Normalization = Literal["None", "Whitespace", "Text", "SQuAD"]
Label = Annotated[str, StringConstraints(min_length=1, max_length=128)]
BASE = "base"
"""Name of the baseline that every evaluation has: the base model with the prompts of the rows."""
TUNED = "tuned"
"""Name of the tuned model among those of baselines."""


class Baseline(SpecModel):
    """The base model with another prompt, which the tuned model is compared with as well."""

    model_config = validation_config(
        cel(
            "has(self.systemPrompt) || has(self.examples)",
            "a baseline has another prompt than the base model alone; give systemPrompt, examples "
            "or both",
        ),
        cel(
            f"!(self.name in ['{BASE}', '{TUNED}'])",
            f"{BASE} is the base model with the prompts of the rows, and {TUNED} the tuned model; "
            "give the baseline another name",
            ".name",
        ),
    )

    name: ChildName
    """Name by which rules of the gate and the status refer to it; base and tuned are taken."""
    system_prompt: Annotated[str, StringConstraints(min_length=1, max_length=8192)] | None = None
    """System turn of every prompt, in the place of the row's own."""
    examples: int | None = Field(default=None, ge=1, le=32)
    """Number of training rows that are written before every prompt as turns of user and assistant.
    The seed chooses them, never from held-out rows or their questions. A prompt that would exceed
    the model's context gets fewer."""


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
    """A metric that the objective measures; one that evaluation.metrics leaves out is refused."""
    min_relative_improvement: Percent | None = None
    """Minimum improvement in percent of the baseline's value, such as 2%; only for loss and
    perplexity. A negative value allows a regression of that size."""
    min_improvement: float | None = Field(default=None, ge=-1000, le=1000)
    """Minimum improvement in the unit of the metric: nats, a fraction (0.05 is five percentage
    points), perplexity or reward. Lower is better for loss and perplexity, higher for the others; a
    negative value allows a regression of that size."""
    baseline: ChildName | None = None
    """Name of the baseline that is compared with, for metrics of answers; absent means the base
    model with the prompts of the rows."""
    statistic: Literal["Bound", "Estimate"] = "Bound"
    """What must be at least the minimum: Bound is the lower end of the 95 % interval of the
    improvement, so that chance alone rarely passes; Estimate is the improvement itself."""


class Evaluation(SpecModel):
    """How the tuned model is compared with its base model."""

    max_samples: int = Field(default=512, ge=1, le=100000)
    """Maximum number of held-out rows for the loss."""
    generations: int = Field(default=64, ge=3, le=10000)
    """Maximum number of held-out prompts that both models answer, for metrics of answers. A
    fraction of 64 answers has a standard error of up to six percentage points, of 400 answers of up
    to two and a half."""
    max_new_tokens: int = Field(default=128, ge=1, le=8192)
    """Maximum length of an answer in tokens; for GRPO at least grpo.maxNewTokens."""
    metrics: list[MetricName] = Field(default_factory=list, max_length=8)
    """What is measured, in the order in which it is reported. loss (all but GRPO) is the held-out
    loss of the objective and perplexity (SFT, Completion) its exponential; preferenceAccuracy (DPO,
    KTO, ORPO, SimPO, Reward) is how often the better answer is preferred; reward (GRPO) the mean
    reward of answers. SFT compares answers with references: accuracy, macroF1 and microF1 of
    labels, exactMatch, jsonFields (F1 of the fields of JSON objects), rougeL, bleu and chrF, all
    from 0 to 1. Empty means loss, preferenceAccuracy and reward where the objective has them, and
    for SFT also accuracy and macroF1 if the held-out answers are a few labels, jsonFields and
    exactMatch if they are JSON objects, else rougeL and exactMatch."""
    normalization: Normalization = "Text"
    """What does not count when answers are compared by exactMatch, labels and fields: Text: case,
    punctuation, white space and compatibility forms; SQuAD: case, punctuation, white space and the
    words a, an and the; Whitespace: its amount and kind; None: every character counts."""
    labels: list[Label] = Field(default_factory=list, max_length=100, json_schema_extra=LIST_SET)
    """Classes of accuracy, macroF1 and microF1, and of the confusion table in the report. Empty
    means the different held-out answers."""
    baselines: list[Baseline] = Field(
        default_factory=list, max_length=3, json_schema_extra=list_map_key("name")
    )
    """The base model with other prompts, for SFT and GRPO. A prompt costs less than training, so a
    tuned model should be better than the best of them. Each answers as many prompts as the base
    model does, which takes as long again."""
    gate: list[GateRule] = Field(default_factory=list, max_length=8)
    """Rules that the tuned model must pass, all of them; without a rule every model passes."""


def objective_rules() -> Iterator[dict[str, JsonValue]]:
    """The rules of a job's spec about its objective and its evaluation.

    Those of the evaluation alone are here too: the API server also applies rules of a section to
    its default, {}, which has no fields yet.
    """
    yield cel(
        "self.evaluation.gate.all(g, !has(g.baseline) || "
        "self.evaluation.baselines.exists(b, b.name == g.baseline))",
        "a rule of evaluation.gate compares with a baseline that evaluation.baselines does not "
        "have; leave baseline out for the base model",
        ".evaluation.gate",
    )
    yield cel(
        f"self.evaluation.gate.all(g, !has(g.baseline) || g.metric in {ANSWER_METRICS})",
        "baselines are compared by their answers; give a rule with a baseline one of the metrics "
        f"{', '.join(ANSWER_METRICS)}",
        ".evaluation.gate",
    )
    yield cel(
        "size(self.evaluation.baselines) == 0 || self.objective in ['SFT', 'GRPO']",
        "baselines are compared by their answers, which only SFT and GRPO evaluate; leave "
        "evaluation.baselines out",
        ".evaluation.baselines",
    )
    yield cel(
        "self.evaluation.baselines.all(b, !has(b.examples) || self.objective == 'SFT')",
        "examples have answers, which only rows of SFT have; give the baseline a systemPrompt",
        ".evaluation.baselines",
    )
    groups = list(names_by_objectives())
    measured = " && ".join(
        f"(!(g.metric in {names}) || self.objective in {list(objectives)})"
        for objectives, names in groups
    )
    listed = "; ".join(
        f"{', '.join(names)} for {', '.join(objectives)}" for objectives, names in groups
    )
    yield cel(
        "size(self.evaluation.labels) == 0 || self.objective == 'SFT'",
        "only answers of SFT are compared with labels; leave evaluation.labels out",
        ".evaluation.labels",
    )
    yield cel(
        "size(self.evaluation.metrics) == 0 || "
        "self.evaluation.gate.all(g, g.metric in self.evaluation.metrics)",
        "evaluation.gate has a metric that evaluation.metrics leaves out; add it there",
        ".evaluation.metrics",
    )
    yield cel(
        f"self.evaluation.metrics.all(m, {measured.replace('g.metric', 'm')})",
        f"evaluation.metrics has a metric that the objective does not measure; there is {listed}",
        ".evaluation.metrics",
    )
    yield cel(
        f"self.evaluation.gate.all(g, {measured})",
        f"evaluation.gate has a metric that the objective does not measure; there is {listed}",
        ".evaluation.gate",
    )
