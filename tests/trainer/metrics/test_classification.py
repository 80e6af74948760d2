"""Accuracy, F1 and the confusion table of answers that are labels."""

from __future__ import annotations

import numpy as np
import pytest
from finetune_trainer.metrics.classification import classify
from finetune_trainer.metrics.statistics import Statistic

LABELS = ("billing", "outage", "sales")
REFERENCES = ["billing"] * 4 + ["outage"] * 3 + ["sales"]
ANSWERS = ["billing", "Billing", "outage", "no idea", "outage", "outage", "billing", "outage"]


def once(statistic: Statistic) -> float:
    return float(statistic.compute(np.ones((1, statistic.items)))[0])


def test_every_figure_follows_from_the_confusion_table() -> None:
    found = classify(ANSWERS, REFERENCES, LABELS, str.lower)
    assert found.confusion().tolist() == [[2, 1, 0, 1], [1, 2, 0, 0], [0, 1, 0, 0]]
    billing, outage, sales = 2 * 2 / (3 + 4), 2 * 2 / (4 + 3), 0.0
    assert [row["f1"] for row in found.by_class()] == pytest.approx([billing, outage, sales])
    assert found.by_class()[1] == {
        "label": "outage",
        "precision": 2 / 4,
        "recall": 2 / 3,
        "f1": pytest.approx(outage),
        "references": 3,
    }
    assert once(found.accuracy()) == 4 / 8
    assert once(found.macro_f1()) == pytest.approx((billing + outage + sales) / 3)
    # One answer is no label: four right, three mistakes, four misses.
    assert once(found.micro_f1()) == pytest.approx(2 * 4 / (2 * 4 + 3 + 4))


def test_a_class_without_references_and_answers_does_not_count() -> None:
    found = classify(["a", "b"], ["a", "a"], ("a", "b", "c"), str)
    assert once(found.macro_f1()) == pytest.approx((2 / 3 + 0) / 2)
    assert found.by_class()[2]["f1"] is None
    # In a resample of the first row alone neither b nor c is left.
    assert found.macro_f1().compute(np.array([[2.0, 0.0]]))[0] == 1.0


def test_counts_weigh_items() -> None:
    found = classify(ANSWERS, REFERENCES, LABELS, str.lower)
    counts = np.array([[2, 0, 1, 3, 0, 1, 1, 2]])
    rows = [index for index, count in enumerate(counts[0]) for _ in range(count)]
    repeated = classify(
        [ANSWERS[row] for row in rows], [REFERENCES[row] for row in rows], LABELS, str.lower
    )
    for metric in ("accuracy", "macro_f1", "micro_f1"):
        weighted = getattr(found, metric)().compute(counts.astype(np.float64))[0]
        assert weighted == pytest.approx(once(getattr(repeated, metric)()))
