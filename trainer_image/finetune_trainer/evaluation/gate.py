"""The rules of the gate, applied to what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.evaluation import BASE
from finetune_api.evaluation_summary import GateOutcome, MetricComparison
from finetune_api.finetunejob import GateRule
from finetune_api.metrics import METRICS, Unit

_NOTHING = (None, None, None)


def apply_rule(rule: GateRule, comparisons: Sequence[MetricComparison]) -> GateOutcome:
    """Whether the improvement, or the lower end of its interval, is at least the required one.

    A metric that the held-out rows do not have fails its rule.
    """
    baseline = rule.baseline or BASE
    found = next(
        (each for each in comparisons if (each.metric, each.baseline) == (rule.metric, baseline)),
        None,
    )
    estimate, low, high = (found.improvement, found.low, found.high) if found else _NOTHING
    unit: Unit = METRICS[rule.metric].unit
    required = rule.min_improvement or 0.0
    if rule.min_relative_improvement is not None:
        unit, required = "Percent", float(rule.min_relative_improvement.removesuffix("%"))
        relative = found and (
            found.relative_percent,
            found.relative_low_percent,
            found.relative_high_percent,
        )
        estimate, low, high = relative or _NOTHING
    decisive = low if rule.statistic == "Bound" else estimate
    return GateOutcome(
        metric=rule.metric,
        baseline=baseline,
        statistic=rule.statistic,
        unit=unit,
        required=required,
        measured=estimate,
        low=low,
        high=high,
        passed=decisive is not None and decisive >= required,
    )
