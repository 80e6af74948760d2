"""Intervals of a difference have nominal coverage, and chance passes no gate.

Each simulation draws items of two models whose true difference is known, many times, and counts
how often the interval covers it, or how often its lower end is above 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from finetune_trainer.metrics.paired_bootstrap import (
    MIN_ITEMS,
    draw_counts,
    expanded_tail,
    mcnemar,
    resample,
    student_quantile,
)
from finetune_trainer.metrics.statistics import (
    Correctness,
    PairOrderStatistic,
    Statistic,
    mean_of,
    ratio_of_sums,
)

Pair = tuple[Statistic, Statistic]
Draw = Callable[[np.random.Generator, int], Pair]
RUNS = 1000
LARGEST_SHARE = 0.05
"""Of models that are equal, those that pass a gate that requires an improvement; 2.5 % are
expected from the interval, and of 1,000 draws 5 % are five standard errors more."""


def draw_scores(shift: float) -> Draw:
    """Skewed scores, correlated between the models; the second has `shift` more."""

    def draw(generator: np.random.Generator, items: int) -> Pair:
        shared = generator.gamma(2.0, 1.0, items)
        first, second = (shared + generator.gamma(1.0, 1.0, items) for _ in range(2))
        return mean_of(first), mean_of(second + shift)

    return draw


def draw_losses(share: float) -> Draw:
    """Losses of sequences of several lengths; the second model's per token is `share` of it."""

    def draw(generator: np.random.Generator, items: int) -> Pair:
        tokens = generator.integers(5, 60, items)
        first, second = (tokens * generator.gamma(9.0, 0.3, items) for _ in range(2))
        return ratio_of_sums(first, tokens), ratio_of_sums(share * second, tokens)

    return draw


def draw_answers(first_only: float, second_only: float, both: float) -> Draw:
    """Right and wrong answers, by how often one model alone or both are right."""
    shares = [first_only, second_only, both, 1 - first_only - second_only - both]

    def draw(generator: np.random.Generator, items: int) -> Pair:
        kind = generator.choice(4, items, p=shares)
        return Correctness((kind == 0) | (kind == 2)), Correctness((kind == 1) | (kind == 2))

    return draw


def intervals(draw: Draw, items: int, runs: int) -> np.ndarray:
    """The intervals of the difference in many simulations, float64 [runs, 2]."""
    generator = np.random.default_rng(20261130)
    found = []
    for run in range(runs):
        resamples = resample(*draw(generator, items), run)
        interval = resamples.interval(resamples.second - resamples.first)
        found.append((interval.low, interval.high))
    return np.array(found)


@pytest.mark.parametrize(
    ("draw", "difference", "items"),
    [
        (draw_scores(0.3), 0.3, 64),
        (draw_scores(0.3), 0.3, MIN_ITEMS),
        (draw_losses(0.9), -0.27, 64),
        (draw_answers(0.1, 0.3, 0.3), 0.2, 64),
        (draw_answers(0.02, 0.04, 0.9), 0.02, 64),
        (draw_answers(0.1, 0.3, 0.3), 0.2, 20),
    ],
    ids=["scores", "few scores", "losses", "answers", "answers mostly equal", "few answers"],
)
def test_an_interval_covers_the_true_difference(draw: Draw, difference: float, items: int) -> None:
    low, high = intervals(draw, items, 400).T
    covered = np.mean((low <= difference) & (difference <= high))
    # 0.95, less two and a half standard errors of 400 runs.
    assert covered >= 0.92


def test_an_interval_is_no_wider_than_it_has_to_be() -> None:
    low, high = intervals(draw_scores(0.0), 64, 200).T
    # Two independent gamma variables of variance 1 differ with variance 2.
    assert np.mean(high - low) == pytest.approx(2 * 1.96 * math.sqrt(2 / 64), rel=0.1)


@pytest.mark.parametrize(
    ("draw", "items"),
    [
        (draw_scores(0.0), 64),
        (draw_scores(0.0), MIN_ITEMS),
        (draw_losses(1.0), 32),
        (draw_answers(0.2, 0.2, 0.3), 64),
        (draw_answers(0.02, 0.02, 0.5), 64),
        (draw_answers(0.3, 0.3, 0.2), MIN_ITEMS),
    ],
    ids=["scores", "few scores", "losses", "answers", "answers mostly equal", "few answers"],
)
def test_a_model_that_is_equal_to_its_base_rarely_passes(draw: Draw, items: int) -> None:
    low, high = intervals(draw, items, RUNS).T
    smallest = 1e-9
    assert np.mean(low >= smallest) <= LARGEST_SHARE
    assert np.mean(-high >= smallest) <= LARGEST_SHARE


def test_models_that_are_right_about_the_same_answers_may_still_differ() -> None:
    right = Correctness(np.arange(64) % 2 == 0)
    resamples = resample(right, right, 7)
    interval = resamples.interval(resamples.second - resamples.first)
    assert -0.06 < interval.low < -0.02
    assert 0.02 < interval.high < 0.06


def test_a_seed_decides_the_interval() -> None:
    pair = draw_scores(0.1)(np.random.default_rng(1), 50)
    first, second, third = (resample(*pair, seed) for seed in (7, 7, 8))
    assert np.array_equal(first.second, second.second)
    assert not np.array_equal(first.second, third.second)


def test_items_are_drawn_in_parts_where_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.metrics.paired_bootstrap.COUNTS_AT_ONCE", 3000)
    parts = list(draw_counts(10, seed=1))
    assert [len(part) for part in parts] == [300] * 6 + [200]
    counts = np.concatenate(parts)
    assert (counts.sum(axis=1) == 10).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(10), abs=0.1)


@pytest.mark.parametrize(("freedom", "quantile"), [(7, 2.36462), (15, 2.13145), (63, 1.99834)])
def test_quantiles_of_student_are_those_of_tables(freedom: int, quantile: float) -> None:
    assert student_quantile(freedom) == pytest.approx(quantile, abs=1e-3)


def test_percentiles_of_many_items_are_the_usual_ones() -> None:
    assert expanded_tail(100_000) == pytest.approx(0.025, abs=1e-4)
    assert expanded_tail(20) < 0.02


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(0, 0, 1.0), (3, 3, 1.0), (1, 9, 2 * 11 / 2**10), (0, 5, 2 / 2**5), (2000, 2600, 0.0)],
)
def test_mcnemar_is_exact(only_first: int, only_second: int, p: float) -> None:
    first = np.repeat([True, False, True], [only_first, only_second, 10])
    second = np.repeat([False, True, True], [only_first, only_second, 10])
    found = mcnemar(Correctness(first), Correctness(second))
    assert found == pytest.approx(p, abs=1e-12)


def test_an_order_of_pairs_is_counted_over_all_pairs() -> None:
    generator = np.random.default_rng(3)
    values = generator.integers(0, 5, 30).astype(np.float64)
    is_upper = generator.random(30) < 0.4
    counts = generator.integers(0, 3, (4, 30)).astype(np.float64)
    found = PairOrderStatistic(values, is_upper).compute(counts)
    for row, share in zip(counts, found, strict=True):
        weights = row[is_upper][:, None] * row[~is_upper][None, :]
        wins = values[is_upper][:, None] > values[~is_upper][None, :]
        assert share == pytest.approx((weights * wins).sum() / weights.sum())
