"""The learning rate of every step, for every schedule."""

from __future__ import annotations

import math
from typing import Any

import pytest
from finetune_api.finetunejob import Training
from finetune_api.train_plan import TrainPlan
from finetune_trainer.training import lr_scheduler

PEAK = 2.0


def rates(total: int = 10, **settings: Any) -> list[float]:
    """The learning rate of every step of a run with peak 2."""
    plan = TrainPlan.model_construct(total_steps=total, learning_rate=PEAK)
    training = Training(**settings)
    return [lr_scheduler.learning_rate(step, plan, training) for step in range(1, total + 1)]


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    found = rates(schedule="constant", warmup_ratio=0.4)
    assert found == pytest.approx([0.5, 1, 1.5, 2, 2, 2, 2, 2, 2, 2])


def test_linear_falls_to_zero_one_step_after_the_last() -> None:
    found = rates(schedule="linear", warmup_ratio=0.2)
    assert found == pytest.approx([1, 2, *(2 * left / 8 for left in range(8, 0, -1))])


def test_cosine_follows_half_a_wave() -> None:
    found = rates(schedule="cosine", warmup_ratio=0.2)
    wave = [1 + math.cos(math.pi * done / 8) for done in range(8)]
    assert found == pytest.approx([1, 2, *wave])


def test_wsd_stays_at_its_peak_and_falls_at_the_end() -> None:
    found = rates(schedule="wsd", warmup_ratio=0.2, decay_ratio=0.3)
    assert found == pytest.approx([1, 2, 2, 2, 2, 2, 2, 2, 4 / 3, 2 / 3])


def test_a_decay_longer_than_the_steps_after_warm_up_takes_all_of_them() -> None:
    decay = rates(schedule="wsd", warmup_ratio=0.2, decay_ratio=1)
    assert decay == pytest.approx(rates(schedule="linear", warmup_ratio=0.2))


def test_a_run_of_warm_up_alone_is_possible() -> None:
    assert rates(total=4, warmup_ratio=1) == pytest.approx([0.5, 1, 1.5, 2])
