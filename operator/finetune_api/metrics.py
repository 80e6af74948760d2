"""The metrics of an evaluation: their units, which direction is better, and who measures them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from finetune_api.combinations import PREFERENCE_OBJECTIVES
from finetune_api.objective import Objective

MetricName = Literal[
    "loss",
    "perplexity",
    "accuracy",
    "macroF1",
    "microF1",
    "exactMatch",
    "jsonFields",
    "rougeL",
    "bleu",
    "chrF",
    "preferenceAccuracy",
    "reward",
]
Unit = Literal["Percent", "Nats", "Perplexity", "Fraction", "Reward"]
"""Of an improvement; Percent only of one that is relative to the baseline."""
Number = TypeVar("Number", float, Any)


@dataclass(frozen=True)
class Metric:
    """What is known of a metric before it is measured."""

    unit: Unit
    objectives: tuple[Objective, ...]
    """Objectives whose evaluation measures it."""
    label: str
    """Its name in tables and messages."""
    is_lower_better: bool = False
    is_of_answers: bool = False
    """Whether answers are compared, so that a baseline may have another prompt."""

    @property
    def is_ratio_scale(self) -> bool:
        """Whether the metric is always above 0, so that an improvement relative to it is defined.

        A fraction can be 0, and a reward can have any sign.
        """
        return self.is_lower_better

    def improve(self, before: Number, after: Number) -> Number:
        """How much better `after` is than `before`, in the unit of the metric; also of arrays."""
        return before - after if self.is_lower_better else after - before


LOSSES: tuple[Objective, ...] = ("SFT", "Completion", *PREFERENCE_OBJECTIVES)
METRICS: Mapping[MetricName, Metric] = {
    "loss": Metric("Nats", LOSSES, "held-out loss", is_lower_better=True),
    "perplexity": Metric("Perplexity", ("SFT", "Completion"), "perplexity", is_lower_better=True),
    "accuracy": Metric("Fraction", ("SFT",), "accuracy", is_of_answers=True),
    "macroF1": Metric("Fraction", ("SFT",), "macro F1", is_of_answers=True),
    "microF1": Metric("Fraction", ("SFT",), "micro F1", is_of_answers=True),
    "exactMatch": Metric("Fraction", ("SFT",), "exact match", is_of_answers=True),
    "jsonFields": Metric("Fraction", ("SFT",), "JSON fields", is_of_answers=True),
    "rougeL": Metric("Fraction", ("SFT",), "ROUGE-L", is_of_answers=True),
    "bleu": Metric("Fraction", ("SFT",), "BLEU", is_of_answers=True),
    "chrF": Metric("Fraction", ("SFT",), "chrF", is_of_answers=True),
    "preferenceAccuracy": Metric("Fraction", PREFERENCE_OBJECTIVES, "better answer preferred"),
    "reward": Metric("Reward", ("GRPO",), "mean reward", is_of_answers=True),
}


def names_by_objectives() -> Iterator[tuple[tuple[Objective, ...], list[MetricName]]]:
    """The metrics that are measured for the same objectives."""
    for objectives in dict.fromkeys(metric.objectives for metric in METRICS.values()):
        yield objectives, [n for n, metric in METRICS.items() if metric.objectives == objectives]
