"""The loss scale of fp16: steps that overflow are skipped, and the losses are those of fp32."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.strategies import loss_scale
from finetune_trainer.strategies.loss_scale import LossScale
from finetune_trainer.strategies.optimizers import clip_and_update
from finetune_trainer.training import divergence

from tests.trainer.drive_training import drive
from tests.trainer.failing_cases import STRATEGIES, FailingCases

pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_step_that_overflowed_changes_no_weight_and_halves_the_scale(bad: float) -> None:
    scale = LossScale()
    weight = torch.nn.Parameter(torch.ones(2))
    plain = torch.optim.SGD([weight], lr=1.0)
    weight.grad = torch.tensor([bad, 1.0])
    assert not math.isfinite(clip_and_update([weight], plain, 1.0, 1.0, scale))
    assert weight.detach().tolist() == [1.0, 1.0]
    assert (scale.value, scale.skipped_steps) == (2.0**15, 1)
    weight.grad = torch.full((2,), 0.5) * scale.value
    assert clip_and_update([weight], plain, 1.0, 1.0, scale) == pytest.approx(math.sqrt(0.5))
    assert weight.detach().tolist() == pytest.approx([0.5, 0.5], abs=1e-5)


def test_the_scale_doubles_after_the_growth_interval_which_a_checkpoint_keeps() -> None:
    scale, later = LossScale(), LossScale()
    for _ in range(loss_scale.GROWTH_INTERVAL - 1):
        scale.update(is_finite=True)
    later.load_state_tensor(scale.state_tensor())
    assert later.value == 2.0**16
    later.update(is_finite=True)
    assert later.value == 2.0**17


def drive_scaled(path: Path, power: int) -> None:
    """Train with another initial loss scale."""
    from deepspeed.accelerator import get_accelerator
    from finetune_trainer.strategies import deepspeed

    # DeepSpeed supports fp16 on GPUs and a few CPUs; the arithmetic is the same on all others.
    get_accelerator().is_fp16_supported = lambda: True
    loss_scale.INITIAL_POWER = deepspeed.INITIAL_POWER = power
    drive(path)


def drive_without_fp16(path: Path) -> None:
    """Train as on a CPU for which DeepSpeed has no fp16."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: False
    drive(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> FailingCases:
    cases = FailingCases(tmp_path_factory.mktemp("loss-scale"))
    fp16: dict[str, Any] = {"training": {"precision": "fp16"}}
    cases.train("fp32", [cases.case("fp32", training={"precision": "fp32"})])
    refused = cases.case("refused", strategy="ZeRO2", **fp16)
    cases.train("refused", [refused], drive_without_fp16)
    half = [cases.case(f"half-{name}", strategy=name, **fp16) for name in STRATEGIES]
    cases.train("half", half, drive_scaled, 16)
    for label, power in (("high", 26), ("endless", 60)):
        scaled = [
            cases.case(f"{label}-{name}", strategy=name, steps=24, **fp16) for name in STRATEGIES
        ]
        cases.train(label, scaled, drive_scaled, power)
    return cases


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fp16_has_nearly_the_losses_of_fp32(runs: FailingCases, strategy: str) -> None:
    fp16 = [line["loss"] for line in runs.history(f"half-{strategy}")]
    exact = [line["loss"] for line in runs.history("fp32")]
    assert fp16 != exact
    assert fp16 == pytest.approx(exact, rel=2e-3)


def test_fp16_under_zero_is_refused_where_deepspeed_lacks_it(runs: FailingCases) -> None:
    error = runs.case_result("refused")["error"]
    assert error["reason"] == "PrecisionUnsupported"
    assert "bf16 or fp32" in error["remedy"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_step_that_overflows_is_skipped_counted_and_reported(
    runs: FailingCases, strategy: str
) -> None:
    lines = runs.history(f"high-{strategy}")
    skipped = [line["grad_norm"] is None for line in lines]
    assert skipped[0]
    assert not skipped[-1]
    assert lines[-1]["skipped_steps"] == sum(skipped)
    seen = runs.case_result(f"high-{strategy}")
    assert seen["finished"] is True
    assert seen["reported"]["measures"]["skipped_steps"] == sum(skipped)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_fp16_run_whose_steps_all_overflow_ends_with_an_error(
    runs: FailingCases, strategy: str
) -> None:
    error = runs.case_result(f"endless-{strategy}")["error"]
    assert error["reason"] == "LossNotFinite"
    assert "fp16" in error["message"]
    assert len(runs.history(f"endless-{strategy}")) == divergence.MAX_OVERFLOWS - 1
