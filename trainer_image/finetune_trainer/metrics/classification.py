"""Answers that are one of a few labels: F1 by class, and the confusion table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune_trainer.metrics.statistics import Correctness, SumStatistic


@dataclass(frozen=True)
class Classified:
    """The labels of answers and of their references."""

    labels: tuple[str, ...]
    expected: np.ndarray
    """int64 [items]: index of the reference's label."""
    given: np.ndarray
    """int64 [items]: index of the answer's label; len(labels) where the answer is none."""

    def accuracy(self) -> Correctness:
        """How often the answer is the right label."""
        return Correctness(self.expected == self.given)

    def macro_f1(self) -> SumStatistic:
        """The mean F1 of all classes; one that neither occurs nor is answered does not count."""
        return self._f1(_macro)

    def micro_f1(self) -> SumStatistic:
        """F1 of the counts of all classes together; an answer that is no label is a miss of the
        right class and a mistake of no other, so it is not accuracy."""
        return self._f1(_micro)

    def _f1(self, combine: Callable[[np.ndarray], np.ndarray]) -> SumStatistic:
        classes = np.arange(len(self.labels))
        is_expected = self.expected[:, None] == classes  # [items, classes]
        is_given = self.given[:, None] == classes
        found = (is_expected & is_given, is_given & ~is_expected, is_expected & ~is_given)
        parts = np.stack(found, axis=-1).reshape(len(self.expected), -1)
        return SumStatistic(parts.astype(np.float64), combine)

    def confusion(self) -> np.ndarray:
        """Number of items by the expected and the given label, int64 [labels, labels + 1]."""
        table = np.zeros((len(self.labels), len(self.labels) + 1), dtype=np.int64)
        np.add.at(table, (self.expected, self.given), 1)
        return table

    def by_class(self) -> list[dict[str, Any]]:
        """Precision, recall, F1 and number of references of every class; None where undefined."""
        table = self.confusion()
        rows = []
        for index, label in enumerate(self.labels):
            right, answered = int(table[index, index]), int(table[:, index].sum())
            support = int(table[index].sum())
            rows.append(
                {
                    "label": label,
                    "precision": right / answered if answered else None,
                    "recall": right / support if support else None,
                    "f1": 2 * right / (answered + support) if answered + support else None,
                    "references": support,
                }
            )
        return rows


def classify(
    answers: Sequence[str],
    references: Sequence[str],
    labels: Sequence[str],
    normalise: Callable[[str], str],
) -> Classified:
    """Find the labels that answers and references are after normalisation.

    Every reference is one of them.
    """
    numbers = {normalise(label): number for number, label in enumerate(labels)}
    expected = [numbers[normalise(reference)] for reference in references]
    given = [numbers.get(normalise(answer), len(labels)) for answer in answers]
    return Classified(tuple(labels), np.array(expected), np.array(given))


def _counts(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Twice the right answers of each class, and these with misses and mistakes, [..., classes]."""
    right, mistakes, misses = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    return 2 * right, 2 * right + mistakes + misses


def _macro(sums: np.ndarray) -> np.ndarray:
    above, below = _counts(sums)
    counts = below > 0
    f1 = np.divide(above, below, out=np.zeros_like(above), where=counts)
    return np.asarray(f1.sum(axis=-1) / np.maximum(1, counts.sum(axis=-1)))


def _micro(sums: np.ndarray) -> np.ndarray:
    above, below = _counts(sums)
    return np.asarray(above.sum(axis=-1) / below.sum(axis=-1))
