"""Compares the tuned model with the base: figures and their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from finetune_api.evaluation import BASE, TUNED
from finetune_api.evaluation_summary import (
    EvaluationSummary,
    MetricComparison,
    PromptComparison,
)
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.metrics import METRICS, MetricName

from finetune_trainer.data.answer_text import split_thought
from finetune_trainer.evaluation.answer_metrics import score_texts
from finetune_trainer.evaluation.gate import apply_rule
from finetune_trainer.evaluation.metric_choice import MetricChoice
from finetune_trainer.metrics.paired_bootstrap import mcnemar, resample
from finetune_trainer.metrics.statistics import (
    Correctness,
    Statistic,
    exponential,
    mean_of,
    ratio_of_sums,
)
from finetune_trainer.runtime.errors import UserError

if TYPE_CHECKING:
    from finetune_trainer.evaluation.parity_probe import AnsweredPrompt
    from finetune_trainer.generation.greedy import Answer

SMALLEST_BASE = 1e-9
"""Least value by which an improvement is divided."""
MANY_ITEMS = 400
"""Items from which on the standard error of a fraction is at most two and a half points."""


@dataclass(frozen=True)
class PairedStatistics:
    """A metric of a baseline and the tuned model, over the same items."""

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
    """Everything measured of the tuned model and its baselines."""

    losses: PairedLosses | None
    preferences: PairedStatistics | None
    rewards: dict[str, np.ndarray] | None
    """The reward of each answer, float64 [prompts], by the name of the baseline, and under TUNED;
    only for GRPO."""
    answered: Sequence[AnsweredPrompt]

    def texts(self) -> tuple[dict[str, list[str]], list[str]]:
        """The answers to all prompts by name, as in `answers_by_name`, and their references.

        Without thoughts, which differ where answers are the same.
        """
        answers = {
            name: [split_thought(answer.text)[1] for answer in given]
            for name, given in answers_by_name(self.answered).items()
        }
        return answers, [split_thought(each.reference)[1] for each in self.answered]


def answers_by_name(answered: Sequence[AnsweredPrompt]) -> dict[str, list[Answer]]:
    """The answers to all prompts by the name of the baseline, and last under TUNED; none where only
    the tuned model has answered."""
    base = [each.base for each in answered if each.base is not None]
    if not base:
        return {}
    prompted = {name: [each.prompted[name] for each in answered] for name in answered[0].prompted}
    return {BASE: base, **prompted, TUNED: [each.tuned for each in answered]}


def compare_all(
    measurements: Measurements, choice: MetricChoice, spec: FineTuneJobSpec
) -> list[MetricComparison]:
    """Every chosen metric of the tuned model against every baseline that has it, the base first."""
    found = [
        compare_metric(metric, baseline, both, spec.training.seed)
        for metric, baseline, both in list_statistics(measurements, choice, spec)
        if metric in choice.metrics
    ]
    order = choice.metrics.index
    return sorted(found, key=lambda each: (each.baseline != BASE, order(each.metric)))


def summarise(
    comparisons: Sequence[MetricComparison], measurements: Measurements, spec: FineTuneJobSpec
) -> EvaluationSummary:
    """What the status has: the comparison with the base, the leading metric of the other baselines,
    and the outcome of each rule of the gate."""
    gate = [apply_rule(rule, comparisons) for rule in spec.evaluation.gate]
    losses, best = measurements.losses, find_best_prompt(comparisons)
    leading = best.metric if best else None
    return EvaluationSummary(
        comparisons=[
            each for each in comparisons if each.baseline == BASE or each.metric == leading
        ],
        best_prompt=best,
        tokens=losses.tokens if losses else None,
        generations=sum(each.base is not None for each in measurements.answered),
        warnings=list(warn_of_few_items(measurements, comparisons)),
        gate=gate,
        passed=all(outcome.passed for outcome in gate),
    )


def find_best_prompt(comparisons: Sequence[MetricComparison]) -> PromptComparison | None:
    """The baseline that is best by the first metric of answers; None with the base alone."""
    leading = next((each.metric for each in comparisons if METRICS[each.metric].is_of_answers), "")
    found = [each for each in comparisons if each.metric == leading]
    if len(found) < 2:
        return None
    # The smallest improvement over it: the tuned model is the same for all.
    best = min(found, key=lambda each: each.improvement)
    return PromptComparison(metric=best.metric, baseline=best.baseline, is_beaten=best.low > 0)


def list_statistics(
    measurements: Measurements, choice: MetricChoice, spec: FineTuneJobSpec
) -> Iterator[tuple[MetricName, str, PairedStatistics]]:
    """The metrics that the objective has, each with the name of the baseline; of answers only those
    that are chosen."""
    if losses := measurements.losses:
        check_losses(losses)
        both = [ratio_of_sums(each, losses.weights) for each in (losses.base, losses.tuned)]
        yield "loss", BASE, PairedStatistics(*both)
        yield "perplexity", BASE, PairedStatistics(*map(exponential, both))
    if measurements.preferences:
        yield "preferenceAccuracy", BASE, measurements.preferences
    metrics: dict[MetricName, dict[str, Statistic]] = {}
    if measurements.rewards:
        rewards, largest = measurements.rewards.items(), largest_reward(spec)
        metrics["reward"] = {name: mean_of(values, largest) for name, values in rewards}
    if spec.objective == "SFT":
        answers, references = measurements.texts()
        metrics |= score_texts(answers, references, choice, spec.evaluation.normalization)
    for metric, statistics in metrics.items():
        for name, statistic in statistics.items():
            if name != TUNED:
                yield metric, name, PairedStatistics(statistic, statistics[TUNED])


def largest_reward(spec: FineTuneJobSpec) -> float:
    """By how much the rewards of two answers differ at most; of a reward model, whose scores have
    no limits, 1."""
    if spec.grpo is None:
        return 0.0
    weights = [abs(each.weight) for each in spec.grpo.rewards]
    return sum(weights) + (1.0 if spec.grpo.reward_model else 0.0)


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


def compare_metric(
    name: MetricName, baseline: str, both: PairedStatistics, seed: int
) -> MetricComparison:
    """One metric of the tuned model and a baseline, with the interval of the improvement."""
    metric, once = METRICS[name], np.ones((1, both.base.items))
    value, after = (float(each.compute(once)[0]) for each in (both.base, both.tuned))
    resamples = resample(both.base, both.tuned, seed)
    improvements = metric.improve(resamples.first, resamples.second)
    interval = resamples.interval(improvements)
    improvement = metric.improve(value, after)
    relative, relative_interval = None, None
    if metric.is_ratio_scale:
        relative = 100 * improvement / value
        # A resample may have only items that the base predicts with certainty.
        relative_interval = resamples.interval(
            100 * improvements / np.maximum(SMALLEST_BASE, resamples.first)
        )
    p_value = None
    if isinstance(both.base, Correctness) and isinstance(both.tuned, Correctness):
        p_value = mcnemar(both.base, both.tuned)
    return MetricComparison(
        metric=name,
        baseline=baseline,
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


def warn_of_few_items(
    measurements: Measurements, comparisons: Sequence[MetricComparison]
) -> Iterator[str]:
    """A sentence about fractions of few items, of which chance moves each by several points."""
    answers = sum(each.base is not None for each in measurements.answered)
    preferences = measurements.preferences
    for metric in dict.fromkeys(each.metric for each in comparisons):
        if METRICS[metric].unit != "Fraction":
            continue
        items = answers if METRICS[metric].is_of_answers else preferences and preferences.base.items
        if items and items < MANY_ITEMS:
            error = 100 * 0.5 / math.sqrt(items)
            yield f"a fraction of {items} items has a standard error of up to {error:.1f} points"
            return
