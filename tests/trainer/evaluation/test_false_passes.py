"""Chance passes no gate, whatever its metric.

Neither one that requires an improvement of a model that is equal, nor one that allows a small
regression of a model that is worse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from finetune_api.metrics import METRICS, MetricName
from finetune_trainer.evaluation.answer_metrics import score_texts
from finetune_trainer.evaluation.comparison import PairedStatistics, compare_metric
from finetune_trainer.evaluation.metric_choice import CLASS_METRICS, MetricChoice
from finetune_trainer.metrics.paired_bootstrap import resample
from finetune_trainer.metrics.statistics import (
    PairOrderStatistic,
    exponential,
    mean_of,
    ratio_of_sums,
)

LABELS = ("billing", "outage", "sales")
WORDS = tuple(f"w{number}" for number in range(200))
RUNS = 100
LARGEST_SHARE = 0.06
"""2.5 % are expected; of 100 draws 6 % are two standard errors more."""
Draw = Callable[[np.random.Generator, int], PairedStatistics]


def draw_answers(metric: MetricName, errors: float) -> Draw:
    """Answers of both models, in which each word is wrong with this probability."""

    def corrupt(generator: np.random.Generator, text: str) -> str:
        pool = (*LABELS, "none") if metric in CLASS_METRICS else WORDS
        words = [
            str(generator.choice(pool)) if generator.random() < errors else word
            for word in text.split()
        ]
        return " ".join(words)

    def draw(generator: np.random.Generator, items: int) -> PairedStatistics:
        if metric in CLASS_METRICS:
            references = [str(each) for each in generator.choice(LABELS, items, p=[0.6, 0.3, 0.1])]
        else:
            references = [
                " ".join(generator.choice(WORDS, generator.integers(3, 12))) for _ in range(items)
            ]
        answers = {
            name: [corrupt(generator, text) for text in references] for name in ("base", "tuned")
        }
        if metric == "jsonFields":
            references = [write_object(text) for text in references]
            answers = {name: [*map(write_object, given)] for name, given in answers.items()}
        return score(metric, answers, references)

    return draw


def write_object(text: str) -> str:
    fields = ", ".join(f'"f{number}": "{word}"' for number, word in enumerate(text.split()))
    return "{" + fields + "}"


def score(
    metric: MetricName, answers: dict[str, list[str]], references: Sequence[str]
) -> PairedStatistics:
    choice = MetricChoice((metric,), LABELS if metric in CLASS_METRICS else ())
    found = score_texts(answers, references, choice, "Text")[metric]
    return PairedStatistics(found["base"], found["tuned"])


def draw_perplexities(generator: np.random.Generator, items: int) -> PairedStatistics:
    tokens = generator.integers(1, 300, items)
    both = (ratio_of_sums(tokens * generator.lognormal(0, 1, items), tokens) for _ in range(2))
    return PairedStatistics(*map(exponential, both))


def draw_orders(generator: np.random.Generator, items: int) -> PairedStatistics:
    """Answers of KTO, of which the better ones have a slightly higher log-probability."""
    is_upper = np.arange(items) % 2 == 0
    shared = generator.normal(0, 1, items) + 0.5 * is_upper
    both = (shared + generator.normal(0, 0.7, items) for _ in range(2))
    return PairedStatistics(*(PairOrderStatistic(values, is_upper) for values in both))


EQUAL: dict[MetricName, Draw] = {
    "macroF1": draw_answers("macroF1", 0.3),
    "microF1": draw_answers("microF1", 0.3),
    "jsonFields": draw_answers("jsonFields", 0.2),
    "bleu": draw_answers("bleu", 0.3),
    "chrF": draw_answers("chrF", 0.3),
    "rougeL": draw_answers("rougeL", 0.3),
    "perplexity": draw_perplexities,
    "preferenceAccuracy": draw_orders,
}


@pytest.mark.parametrize("items", [8, 40])
@pytest.mark.parametrize("metric", EQUAL)
def test_a_model_that_is_equal_to_its_base_rarely_passes(metric: MetricName, items: int) -> None:
    # Few rows of very different lengths are the hardest case, 4.2 % in 1,000 draws.
    runs = 1000 if metric == "perplexity" else RUNS
    lows = lower_ends(metric, EQUAL[metric], items, runs)
    assert np.mean(lows > 1e-9) <= LARGEST_SHARE


TEXTS: tuple[MetricName, ...] = ("macroF1", "microF1", "jsonFields", "rougeL", "bleu", "chrF")


@pytest.mark.parametrize("items", [8, 40])
@pytest.mark.parametrize("metric", TEXTS)
def test_models_that_are_mostly_equal_rarely_pass(metric: MetricName, items: int) -> None:
    """The tuned model says nothing to one of 20 prompts, and the base answers all; so it is worse
    by 0.05, or F1 by less."""

    def draw(generator: np.random.Generator, items: int) -> PairedStatistics:
        references = [str(each) for each in generator.choice(LABELS, items)]
        if metric == "jsonFields":
            references = [write_object(text) for text in references]
        silent = generator.random(items) < 0.05
        tuned = ["" if each else text for each, text in zip(silent, references, strict=True)]
        return score(metric, {"base": references, "tuned": tuned}, references)

    lows = lower_ends(metric, draw, items)
    allowed = -0.025 if metric.endswith("F1") else -0.05
    assert np.mean(lows >= allowed + 1e-9) <= LARGEST_SHARE


def test_rewards_that_are_mostly_equal_rarely_pass() -> None:
    def draw(generator: np.random.Generator, items: int) -> PairedStatistics:
        worse = 2.0 * (generator.random(items) >= 0.05)
        return PairedStatistics(mean_of(np.full(items, 2.0), 2.0), mean_of(worse, 2.0))

    assert np.mean(lower_ends("reward", draw, 16) >= -0.1 + 1e-9) <= LARGEST_SHARE


def test_scores_that_differ_for_every_item_have_intervals_of_the_usual_width() -> None:
    generator = np.random.default_rng(5)
    first, second = generator.uniform(0.2, 0.8, (2, 200))
    plain, guarded = (
        np.ptp([*vars(resamples.interval(resamples.second - resamples.first)).values()])
        for resamples in (
            resample(mean_of(first, largest), mean_of(second, largest), 1) for largest in (0.0, 1.0)
        )
    )
    assert guarded == pytest.approx(plain, rel=0.1)


def test_figures_of_a_broken_model_are_finite() -> None:
    ones = np.ones(8, dtype=np.int64)
    # Most resamples of the base have only rows that it predicts with certainty.
    base = ratio_of_sums(np.array([1.0] + [0.0] * 7), ones)
    tuned = ratio_of_sums(np.full(8, 5000.0), ones)
    found = compare_metric("loss", "base", PairedStatistics(base, tuned), 1)
    assert found.relative_low_percent is not None
    assert found.relative_low_percent < -1e6
    both = PairedStatistics(exponential(base), exponential(tuned))
    assert compare_metric("perplexity", "base", both, 1).low < -1e300


def lower_ends(metric: MetricName, draw: Draw, items: int, runs: int = RUNS) -> np.ndarray:
    """The lower ends of the improvement in many simulations, float64 [runs]."""
    generator = np.random.default_rng(20261130)
    found: list[Any] = []
    for run in range(runs):
        both = draw(generator, items)
        resamples = resample(both.base, both.tuned, run)
        improvements = METRICS[metric].improve(resamples.first, resamples.second)
        found.append(resamples.interval(improvements).low)
    return np.array(found)
