"""What was found out about both models, made into figures and judged by the gate's rules."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from finetune_api.finetunejob import FineTuneJobSpec, GateRule
from finetune_api.run import EvaluationSummary, Failure, GateOutcome, LossComparison, MetricPair

from finetune_trainer.metrics.bootstrap import bootstrap
from finetune_trainer.metrics.exact_match import exact_match
from finetune_trainer.metrics.rouge import rouge_l
from finetune_trainer.runtime.errors import UserError


@dataclass(frozen=True)
class PairedLosses:
    """Of every held-out unit, under both models."""

    base: np.ndarray
    """float64 [units]."""
    tuned: np.ndarray
    """float64 [units]."""
    weights: np.ndarray
    """int64 [units]: what the sum of the losses is divided by, summed."""
    tokens: int
    """Tokens of all units that a loss was computed of."""


@dataclass(frozen=True)
class Measurements:
    """Everything that was found out about both models."""

    losses: PairedLosses | None
    preferred: MetricPair | None
    rewards: list[tuple[float, float]] | None
    """The base model's and the tuned model's, for each sample; only for GRPO."""
    samples: Sequence[Any]


def compare_losses(losses: PairedLosses, seed: int) -> LossComparison:
    """Mean losses, and the 95 % interval of the relative improvement."""
    weight = int(losses.weights.sum())
    before, after = float(losses.base.sum()), float(losses.tuned.sum())
    if not np.isfinite(before) or not np.isfinite(after) or not weight or before <= 0:
        raise UserError(
            "LossNotFinite",
            f"The held-out loss is {before} of the base and {after} of the tuned model "
            f"over {losses.tokens} tokens.",
            "Lower training.learningRate, or give a larger held-out set.",
        )
    low, high = bootstrap(losses.base, losses.tuned, seed)
    return LossComparison(
        base=before / weight,
        tuned=after / weight,
        improvement_percent=100 * (before - after) / before,
        low_percent=low,
        high_percent=high,
        tokens=losses.tokens,
    )


def summarise(measured: Measurements, spec: FineTuneJobSpec) -> EvaluationSummary:
    """All measures and how the gate's rules go."""
    both = [sample for sample in measured.samples if sample.base is not None]

    def pair(score: Callable[[str, str], float]) -> MetricPair | None:
        if not both or spec.objective != "SFT":
            return None
        return MetricPair(
            base=float(np.mean([score(s.base.text, s.reference) for s in both])),
            tuned=float(np.mean([score(s.tuned.text, s.reference) for s in both])),
        )

    loss = compare_losses(measured.losses, spec.training.seed) if measured.losses else None
    rewards = np.mean(measured.rewards, axis=0).tolist() if measured.rewards else None
    pairs = {
        "exactMatch": pair(exact_match),
        "rougeL": pair(rouge_l),
        "preferenceAccuracy": measured.preferred,
        "reward": MetricPair(base=rewards[0], tuned=rewards[1]) if rewards else None,
    }
    gate = [apply_rule(rule, loss, pairs) for rule in spec.evaluation.gate]
    return EvaluationSummary(
        loss=loss,
        preference_accuracy=pairs["preferenceAccuracy"],
        reward=pairs["reward"],
        exact_match=pairs["exactMatch"],
        rouge_l=pairs["rougeL"],
        generations=len(both),
        gate=gate,
        passed=all(outcome.passed for outcome in gate),
    )


def apply_rule(
    rule: GateRule, loss: LossComparison | None, pairs: dict[str, MetricPair | None]
) -> GateOutcome:
    """Loss is measured relative to the base, the others in points of a hundred above it."""
    required = float(rule.min_improvement.rstrip("%"))
    measured: float | None
    if rule.metric == "loss":
        measured = loss.improvement_percent if loss else None
    else:
        pair = pairs.get(rule.metric)
        measured = 100 * (pair.tuned - pair.base) if pair else None
    return GateOutcome(
        metric=rule.metric,
        required=rule.min_improvement,
        measured="not measured" if measured is None else f"{measured:.2f}%",
        passed=measured is not None and measured >= required,
    )


def gate_failure(summary: EvaluationSummary) -> Failure | None:
    """The failure of a model that may not be served."""
    broken = [outcome for outcome in summary.gate if not outcome.passed]
    if not broken:
        return None
    listed = ", ".join(f"{o.metric} improved by {o.measured}, not {o.required}" for o in broken)
    return Failure(
        reason="GateNotMet",
        message=f"The tuned model is not good enough: {listed}.",
        remedy="Look at the answers in the evaluation report; train longer, on more or better "
        "data, or ask less of evaluation.gate.",
    )
