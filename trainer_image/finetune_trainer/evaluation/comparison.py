"""Compares the tuned model with the base: figures and their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from finetune_api.evaluation_summary import EvaluationSummary, MetricComparison
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.metrics import METRICS, MetricName

from finetune_trainer.data.answer_text import split_thought
from finetune_trainer.evaluation.gate import apply_rule
from finetune_trainer.metrics.exact_match import exact_match
from finetune_trainer.metrics.paired_bootstrap import mcnemar, resample
from finetune_trainer.metrics.rouge import rouge_l
from finetune_trainer.metrics.statistics import Correctness, Statistic, mean_of, ratio_of_sums
from finetune_trainer.runtime.errors import UserError

if TYPE_CHECKING:
    from finetune_trainer.evaluation.parity_probe import AnsweredPrompt

MANY_ITEMS = 400
"""Items from which on the standard error of a fraction is at most two and a half points."""


@dataclass(frozen=True)
class PairedStatistics:
    """A metric of both models, over the same items."""

    base: Statistic
    tuned: Statistic


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
    preferences: PairedStatistics | None
    rewards: list[tuple[float, float]] | None
    """The base model's and the tuned model's reward for each prompt; only for GRPO."""
    answered: Sequence[AnsweredPrompt]


def summarise(measurements: Measurements, spec: FineTuneJobSpec) -> EvaluationSummary:
    """All metrics, and the outcome of each rule of the gate."""
    found = dict(list_statistics(measurements, spec))
    comparisons = [compare_metric(name, both, spec.training.seed) for name, both in found.items()]
    gate = [apply_rule(rule, comparisons) for rule in spec.evaluation.gate]
    losses = measurements.losses
    return EvaluationSummary(
        comparisons=comparisons,
        tokens=losses.tokens if losses else None,
        generations=sum(each.base is not None for each in measurements.answered),
        warnings=list(warn_of_few_items(found)),
        gate=gate,
        passed=all(outcome.passed for outcome in gate),
    )


def list_statistics(
    measurements: Measurements, spec: FineTuneJobSpec
) -> Iterator[tuple[MetricName, PairedStatistics]]:
    """The metrics that the objective has, by name."""
    if losses := measurements.losses:
        check_losses(losses)
        yield (
            "loss",
            PairedStatistics(
                ratio_of_sums(losses.base, losses.weights),
                ratio_of_sums(losses.tuned, losses.weights),
            ),
        )
    if measurements.preferences:
        yield "preferenceAccuracy", measurements.preferences
    if measurements.rewards:
        base, tuned = np.array(measurements.rewards).T  # [2, prompts]
        yield "reward", PairedStatistics(mean_of(base), mean_of(tuned))
    if spec.objective == "SFT":
        yield from list_answer_statistics(measurements.answered)


def list_answer_statistics(
    answered: Sequence[AnsweredPrompt],
) -> Iterator[tuple[MetricName, PairedStatistics]]:
    """Metrics of answers with a reference."""
    # Only the answer is compared: thoughts differ where answers are the same.
    answers = [
        tuple(split_thought(text)[1] for text in (each.base.text, each.tuned.text, each.reference))
        for each in answered
        if each.base is not None
    ]
    if not answers:
        return

    def score(metric: Callable[[str, str], float]) -> tuple[np.ndarray, np.ndarray]:
        base = np.array([metric(base, reference) for base, _, reference in answers])
        return base, np.array([metric(tuned, reference) for _, tuned, reference in answers])

    base, tuned = score(exact_match)
    yield "exactMatch", PairedStatistics(Correctness(base > 0), Correctness(tuned > 0))
    base, tuned = score(rouge_l)
    yield "rougeL", PairedStatistics(mean_of(base), mean_of(tuned))


def check_losses(losses: PairedLosses) -> None:
    """Raises UserError LossNotFinite, which a device can cause, or LossNotComparable."""
    base, tuned = float(losses.base.sum()), float(losses.tuned.sum())
    found = (
        f"The held-out loss of the base model is {base} and of the tuned model {tuned}, over "
        f"{losses.tokens} tokens"
    )
    if not np.isfinite(base) or not np.isfinite(tuned):
        remedy = "Lower training.learningRate, or give a larger held-out set."
        raise UserError("LossNotFinite", f"{found}.", remedy)
    if not losses.weights.sum() or base <= 0:
        raise UserError(
            "LossNotComparable",
            f"{found}, so no improvement can be computed.",
            "Hold out rows of weights above 0 that the base model does not predict with certainty.",
        )


def compare_metric(name: MetricName, both: PairedStatistics, seed: int) -> MetricComparison:
    """One metric of both models, with the interval of the improvement."""
    metric, once = METRICS[name], np.ones((1, both.base.items))
    value, after = (float(each.compute(once)[0]) for each in (both.base, both.tuned))
    resamples = resample(both.base, both.tuned, seed)
    improvements = metric.improve(resamples.first, resamples.second)
    interval = resamples.interval(improvements)
    improvement = metric.improve(value, after)
    relative, relative_interval = None, None
    if metric.is_ratio_scale:
        relative = 100 * improvement / value
        with np.errstate(invalid="ignore", divide="ignore"):
            relative_interval = resamples.interval(100 * improvements / resamples.first)
    p_value = None
    if isinstance(both.base, Correctness) and isinstance(both.tuned, Correctness):
        p_value = mcnemar(both.base, both.tuned)
    return MetricComparison(
        metric=name,
        value=round_figure(value),
        tuned=round_figure(after),
        improvement=round_figure(improvement),
        low=round_figure(interval.low),
        high=round_figure(interval.high),
        relative_percent=relative if relative is None else round_figure(relative),
        relative_low_percent=relative_interval and round_figure(relative_interval.low),
        relative_high_percent=relative_interval and round_figure(relative_interval.high),
        p_value=p_value if p_value is None else round_figure(p_value),
    )


def round_figure(value: float) -> float:
    """Six significant digits: the figures of many metrics must fit into a termination message."""
    return float(f"{value:.6g}")


def warn_of_few_items(found: dict[MetricName, PairedStatistics]) -> Iterator[str]:
    """A sentence about the fraction with the fewest items, unless they are many."""
    fractions = [
        (both.base.items, METRICS[name].label)
        for name, both in found.items()
        if METRICS[name].unit == "Fraction"
    ]
    items, label = min(fractions, default=(MANY_ITEMS, ""))
    if items < MANY_ITEMS:
        error = 100 * 0.5 / math.sqrt(items)
        yield f"{label} of {items} items has a standard error of up to {error:.1f} points"
