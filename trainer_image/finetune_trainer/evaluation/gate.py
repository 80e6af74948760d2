"""The rules of the gate, applied to what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.evaluation_summary import GateOutcome, MetricComparison
from finetune_api.finetunejob import FineTuneJobSpec, GateRule
from finetune_api.metrics import METRICS, Unit

from finetune_trainer.metrics.paired_bootstrap import MIN_ITEMS
from finetune_trainer.runtime.errors import UserError

_NOTHING = (None, None, None)


def check_gate(spec: FineTuneJobSpec, rows: int) -> None:
    """Raises UserError where `rows` held-out rows are too few for the lower end of an interval."""
    for number, rule in enumerate(spec.evaluation.gate):
        is_of_answers = METRICS[rule.metric].is_of_answers
        limit = spec.evaluation.generations if is_of_answers else spec.evaluation.max_samples
        if rule.statistic == "Bound" and min(rows, limit) < MIN_ITEMS:
            field = "generations" if is_of_answers else "maxSamples"
            raise UserError(
                "TooFewHeldOutRows",
                f"evaluation.gate[{number}] compares the lower end of an interval, for which "
                f"{min(rows, limit)} held-out rows are too few: {MIN_ITEMS} are needed.",
                f"Set its statistic to Estimate, or hold out more rows and set "
                f"evaluation.{field} to {MIN_ITEMS} or more.",
            )


def apply_rule(rule: GateRule, comparisons: Sequence[MetricComparison]) -> GateOutcome:
    """Whether the improvement, or the lower end of its interval, is at least the required one.

    A metric that the held-out rows do not have fails its rule.
    """
    found = next((each for each in comparisons if each.metric == rule.metric), None)
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
        statistic=rule.statistic,
        unit=unit,
        required=required,
        measured=estimate,
        low=low,
        high=high,
        passed=decisive is not None and decisive >= required,
    )
