"""What is refused where the losses of two models cannot be compared."""

from __future__ import annotations

import math

import numpy as np
import pytest
from finetune_trainer.evaluation.comparison import PairedLosses, check_losses
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
