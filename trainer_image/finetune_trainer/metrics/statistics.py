"""Metrics of a set of items as functions of how often each item counts.

A bootstrap counts every item as often as it was drawn, so a metric that takes counts is computed
for many resamples at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

LARGEST_EXPONENT = 700.0
"""A model of a higher loss, in nats, is broken; the next power of e has no float64."""


class Statistic(Protocol):
    """A metric of some items."""

    @property
    def items(self) -> int:
        """Number of items."""

    def compute(self, counts: np.ndarray) -> np.ndarray:
        """The metric, float64 [resamples], for counts of the items, float64 [resamples, items]."""


@dataclass(frozen=True)
class SumStatistic:
    """A metric that follows from sums over the items, as most do.

    Accuracy is a sum of ones and zeros divided by the number of items; a mean loss is a sum of
    losses divided by a sum of tokens; F1 and BLEU follow from sums of counts.
    """

    parts: np.ndarray
    """float64 [items, parts]: what each item adds to each sum."""
    combine: Callable[[np.ndarray], np.ndarray]
    """The metric from sums [..., parts]."""
    extremes: np.ndarray | None = None
    """What a wholly right item and a wholly wrong one add, float64 [2, parts], of a metric in which
    two models can be equal for every item; None for one that is continuous, such as a loss."""

    @property
    def items(self) -> int:
        return len(self.parts)

    def compute(self, counts: np.ndarray) -> np.ndarray:
        return self.combine(counts @ self.parts)

    def append(self, *parts: np.ndarray) -> SumStatistic:
        """With more items."""
        return replace(self, parts=np.concatenate([self.parts, parts]))


def ratio_of_sums(values: np.ndarray, weights: np.ndarray) -> SumStatistic:
    """sum(values) / sum(weights), both [items]."""
    parts = np.stack([values, weights], axis=-1).astype(np.float64)
    return SumStatistic(parts, _divide)


def mean_of(scores: np.ndarray, largest: float = 0.0) -> SumStatistic:
    """The mean of one score for each item, [items]; `largest` is that of a right item where a wrong
    one has 0."""
    extremes = np.array([[largest, 1.0], [0.0, 1.0]]) if largest else None
    return replace(ratio_of_sums(scores, np.ones(len(scores))), extremes=extremes)


def exponential(statistic: SumStatistic) -> SumStatistic:
    """The exponential of a metric: perplexity, of a mean loss; finite for every loss."""
    return SumStatistic(
        statistic.parts, lambda sums: np.exp(np.minimum(LARGEST_EXPONENT, statistic.combine(sums)))
    )


def _divide(sums: np.ndarray) -> np.ndarray:
    return np.asarray(sums[..., 0] / sums[..., 1])


@dataclass(frozen=True)
class Correctness:
    """The fraction of items that a model gets right."""

    is_right: np.ndarray
    """bool [items]."""

    @property
    def items(self) -> int:
        return len(self.is_right)

    def compute(self, counts: np.ndarray) -> np.ndarray:
        return np.asarray(counts @ self.is_right / counts.sum(axis=1))

    def append(self, *is_right: bool) -> Correctness:
        """With more items."""
        return Correctness(np.append(self.is_right, is_right))


@dataclass(frozen=True)
class PairOrderStatistic:
    """How often an item of one group has a higher value than one of the other, over all pairs.

    A resample without an item of either group has no pairs, and the result NaN.
    """

    values: np.ndarray
    """float64 [items]."""
    is_upper: np.ndarray
    """bool [items]: whether the item is of the group whose values should be higher."""

    @property
    def items(self) -> int:
        return len(self.values)

    def compute(self, counts: np.ndarray) -> np.ndarray:
        lower = counts[:, ~self.is_upper]
        order = np.argsort(self.values[~self.is_upper], kind="stable")
        below = np.searchsorted(
            self.values[~self.is_upper][order], self.values[self.is_upper], side="left"
        )
        # [resamples, lower items + 1]: how many of the lower group are among the first n.
        cumulative = np.concatenate(
            [np.zeros((len(counts), 1)), np.cumsum(lower[:, order], axis=1)], axis=1
        )
        upper = counts[:, self.is_upper]
        pairs = upper.sum(axis=1) * lower.sum(axis=1)
        with np.errstate(invalid="ignore"):
            return np.asarray((upper * cumulative[:, below]).sum(axis=1) / pairs)
