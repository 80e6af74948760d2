"""Compares the tuned model with the base: figures, their intervals, and the rules of the gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from finetune_api.evaluation_summary import (
    EvaluationSummary,
    GateOutcome,
    LossComparison,
    MetricPair,
)
from finetune_api.failure import Failure
from finetune_api.finetunejob import FineTuneJobSpec, GateRule

from finetune_trainer.data.answer_text import split_thought
from finetune_trainer.metrics.bootstrap import bootstrap_interval
from finetune_trainer.metrics.exact_match import exact_match
from finetune_trainer.metrics.rouge import rouge_l
from finetune_trainer.runtime.errors import UserError

if TYPE_CHECKING:
    from finetune_trainer.evaluation.parity_probe import AnsweredPrompt


@dataclass(frozen=True)
class PairedLosses:
    """The losses of the same held-out items under both models."""

    base: np.ndarray
    """float64 [items]."""
    tuned: np.ndarray
    """float64 [items]."""
    weights: np.ndarray
    """int64 [items]: the sum of the losses divided by the sum of these is the mean loss."""
    tokens: int
    """Tokens with a label in all items."""


@dataclass(frozen=True)
class Measurements:
    """Everything measured of both models."""

    losses: PairedLosses | None
    preference_accuracy: MetricPair | None
    rewards: list[tuple[float, float]] | None
    """The base model's and the tuned model's reward for each prompt; only for GRPO."""
    answered: Sequence[AnsweredPrompt]


def compare_losses(losses: PairedLosses, seed: int) -> LossComparison:
    """Mean losses, and the 95 % interval of the relative improvement.

    Raises UserError LossNotFinite, which a device can cause, or LossNotComparable.
    """
    weight = int(losses.weights.sum())
    base, tuned = float(losses.base.sum()), float(losses.tuned.sum())
    found = (
        f"The held-out loss of the base model is {base} and of the tuned model {tuned}, over "
        f"{losses.tokens} tokens"
    )
    if not np.isfinite(base) or not np.isfinite(tuned):
        remedy = "Lower training.learningRate, or give a larger held-out set."
        raise UserError("LossNotFinite", f"{found}.", remedy)
    if not weight or base <= 0:
        raise UserError(
            "LossNotComparable",
            f"{found}, so no improvement can be computed.",
            "Hold out rows of weights above 0 that the base model does not predict with certainty.",
        )
    low, high = bootstrap_interval(losses.base, losses.tuned, seed)
    return LossComparison(
        base=base / weight,
        tuned=tuned / weight,
        improvement_percent=100 * (base - tuned) / base,
        low_percent=low,
        high_percent=high,
        tokens=losses.tokens,
    )


def summarise(measurements: Measurements, spec: FineTuneJobSpec) -> EvaluationSummary:
    """All metrics, and the outcome of each rule of the gate."""
    # Only the answer is compared: thoughts differ where answers are the same.
    answers = [
        tuple(split_thought(text)[1] for text in (each.base.text, each.tuned.text, each.reference))
        for each in measurements.answered
        if each.base is not None
    ]

    def mean_scores(score: Callable[[str, str], float]) -> MetricPair | None:
        if not answers or spec.objective != "SFT":
            return None
        return MetricPair(
            base=float(np.mean([score(base, reference) for base, _, reference in answers])),
            tuned=float(np.mean([score(tuned, reference) for _, tuned, reference in answers])),
        )

    losses = measurements.losses
    loss = compare_losses(losses, spec.training.seed) if losses else None
    rewards = np.mean(measurements.rewards, axis=0).tolist() if measurements.rewards else None
    pairs = {
        "exactMatch": mean_scores(exact_match),
        "rougeL": mean_scores(rouge_l),
        "preferenceAccuracy": measurements.preference_accuracy,
        "reward": MetricPair(base=rewards[0], tuned=rewards[1]) if rewards else None,
    }
    gate = [apply_rule(rule, loss, pairs) for rule in spec.evaluation.gate]
    return EvaluationSummary(
        loss=loss,
        preference_accuracy=pairs["preferenceAccuracy"],
        reward=pairs["reward"],
        exact_match=pairs["exactMatch"],
        rouge_l=pairs["rougeL"],
        generations=len(answers),
        gate=gate,
        passed=all(outcome.passed for outcome in gate),
    )


def apply_rule(
    rule: GateRule, loss: LossComparison | None, pairs: dict[str, MetricPair | None]
) -> GateOutcome:
    """The loss improves relative to the base, in percent; other metrics in percentage points."""
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
    """The failure of a tuned model that the gate does not let through; None where it passes."""
    unmet = [outcome for outcome in summary.gate if not outcome.passed]
    if not unmet:
        return None
    listed = ", ".join(f"{o.metric} improved by {o.measured}, not {o.required}" for o in unmet)
    return Failure(
        reason="GateNotMet",
        message=f"The tuned model is not good enough: {listed}.",
        remedy="Look at the answers in the evaluation report; train longer, on more or better "
        "data, or lower the requirements of evaluation.gate.",
    )
