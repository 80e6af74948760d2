"""What is refused where the losses of two models cannot be compared."""

from __future__ import annotations

import math

import numpy as np
import pytest
from finetune_api.evaluation_summary import MetricComparison, PromptComparison
from finetune_api.metrics import MetricName
from finetune_trainer.evaluation.comparison import (
    PairedLosses,
    check_losses,
    find_best_prompt,
)
from finetune_trainer.runtime.errors import UserError


@pytest.mark.parametrize(
    ("base", "tuned", "weight", "reason"),
    [
        (math.nan, 1.0, 4, "LossNotFinite"),
        (1.0, math.inf, 4, "LossNotFinite"),
        (0.0, 1.0, 4, "LossNotComparable"),
        (1.0, 1.0, 0, "LossNotComparable"),
    ],
)
def test_only_a_loss_that_is_not_finite_may_be_the_fault_of_a_device(
    base: float, tuned: float, weight: int, reason: str
) -> None:
    losses = PairedLosses(np.array([base, base]), np.array([tuned, tuned]), np.full(2, weight), 8)
    with pytest.raises(UserError) as raised:
        check_losses(losses)
    assert raised.value.failure.reason == reason
    assert raised.value.failure.remedy


def compared(metric: MetricName, baseline: str, value: float, low: float) -> MetricComparison:
    """A tuned model of value 1 against a baseline."""
    return MetricComparison(
        metric=metric,
        baseline=baseline,
        value=value,
        tuned=1,
        improvement=1 - value,
        low=low,
        high=1,
    )


def test_the_best_prompt_is_that_of_the_first_metric_of_answers() -> None:
    comparisons = [
        compared("loss", "base", 0.0, 0.9),
        compared("rougeL", "base", 0.2, 0.5),
        compared("exactMatch", "base", 0.9, 0.05),
        compared("rougeL", "polite", 0.7, -0.1),
        compared("rougeL", "few", 0.6, 0.1),
    ]
    best = find_best_prompt(comparisons)
    assert best == PromptComparison(metric="rougeL", baseline="polite", is_beaten=False)
    best = find_best_prompt([each for each in comparisons if each.baseline != "polite"])
    assert best == PromptComparison(metric="rougeL", baseline="few", is_beaten=True)
    assert find_best_prompt(comparisons[:3]) is None
