"""Runs that cannot succeed end with an error and a remedy; noisy ones continue."""

from __future__ import annotations

import math
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.training import divergence
from finetune_trainer.training.divergence import DivergenceDetector, LossMonitor

from tests.trainer.drive_training import drive
from tests.trainer.failing_cases import STRATEGIES, FailingCases


def diverges_at(losses: Any) -> int | None:
    """Index of the step at which a run with these losses ends."""
    detector = DivergenceDetector()
    return next(
        (index for index, loss in enumerate(losses) if detector.add_loss(float(loss))), None
    )


def falling(steps: int, start: float = 3.0, end: float = 1.5) -> np.ndarray:
    return end + (start - end) * np.exp(-np.arange(steps) / (steps / 4))


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5, 1.5])
@pytest.mark.parametrize("seed", range(5))
def test_noisy_runs_continue(noise: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    assert diverges_at(falling(3000) + generator.normal(0, noise, 3000)) is None


def test_runs_with_single_spikes_or_heavy_tails_continue() -> None:
    generator = np.random.default_rng(1)
    spiky = falling(2000)
    spiky[::97] += 8
    assert diverges_at(spiky) is None
    assert diverges_at(falling(2000) + generator.exponential(0.7, 2000)) is None


def test_a_run_that_recovers_from_a_rise_after_warm_up_continues() -> None:
    assert diverges_at([*falling(100), *([3.5] * 12), *falling(200)]) is None


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("height", [4.0, 7.0, 11.0])
def test_a_diverging_loss_ends_the_run(noise: float, height: float) -> None:
    generator = np.random.default_rng(2)
    losses = np.concatenate([falling(200), np.linspace(1.6, height, 30), np.full(200, height)])
    at = diverges_at(losses + generator.normal(0, noise, len(losses)))
    assert at is not None
    assert 200 + divergence.PATIENCE < at < 280


def check_rising_loss(objective: str) -> None:
    monitor = LossMonitor(objective)
    for step in range(1, 200):
        monitor.check_step(step, float(step), grad_norm=1.0, learning_rate=1e-3, is_skipped=False)


def test_a_rising_loss_does_not_end_a_grpo_run() -> None:
    check_rising_loss("GRPO")
    with pytest.raises(UserError) as raised:
        check_rising_loss("SFT")
    assert raised.value.failure.reason == "LossDiverged"


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan)])
def test_a_loss_or_norm_that_is_not_finite_ends_the_run(loss: float, norm: float) -> None:
    with pytest.raises(UserError) as raised:
        LossMonitor("SFT").check_step(7, loss, norm, 1e-3, is_skipped=False)
    assert raised.value.failure.reason == "LossNotFinite"
    assert "step 7" in raised.value.failure.message


def test_only_consecutive_overflows_end_an_fp16_run() -> None:
    monitor = LossMonitor("SFT")
    for step in range(1, 4 * divergence.MAX_OVERFLOWS):
        monitor.check_step(step, 2.0, math.inf if step % 3 else 1.0, 1e-3, is_skipped=step % 3 != 0)
    for step in range(1, divergence.MAX_OVERFLOWS):
        monitor.check_step(100 + step, 2.0, math.inf, 1e-3, is_skipped=True)
    with pytest.raises(UserError, match="in fp16") as raised:
        monitor.check_step(100 + divergence.MAX_OVERFLOWS, 2.0, math.inf, 1e-3, is_skipped=True)
    assert raised.value.failure.reason == "LossNotFinite"


def drive_broken(path: Path) -> None:
    """Train with gradients that are NaN although the losses are finite."""
    from torch.nn.modules.module import register_module_full_backward_hook

    def spoil(module: Any, down: Any, up: Any) -> Any:
        return tuple(each * math.nan for each in down) if is_feed_forward(module) else None

    def is_feed_forward(module: Any) -> bool:
        return type(module).__name__ == "LlamaMLP"

    with register_module_full_backward_hook(spoil):
        drive(path)


def drive_nan_loss(path: Path) -> None:
    """Train with one rank whose activations are NaN."""
    from torch.nn.modules.module import register_module_forward_hook

    def spoil(module: Any, inputs: Any, output: Any) -> Any:
        is_broken = os.environ["RANK"] == "1" and type(module).__name__ == "LlamaMLP"
        return output * math.nan if is_broken else None

    with register_module_forward_hook(spoil):
        drive(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> FailingCases:
    cases = FailingCases(tmp_path_factory.mktemp("divergence"))
    constant = {"schedule": "constant", "warmupRatio": 0}
    cases.train(
        "plain",
        [
            cases.case("diverging", 3.0, method="Full", steps=120, training=constant),
            cases.case("fine", method="Full", training=constant),
        ],
    )
    broken = [cases.case(f"broken-{name}", strategy=name) for name in STRATEGIES]
    cases.train("broken", broken, drive_broken)
    cases.train("broken-rank", [cases.case("broken-rank")], drive_nan_loss)
    return cases


def test_a_real_run_that_diverges_ends_with_an_error(runs: FailingCases) -> None:
    error = runs.case_result("diverging")["error"]
    assert error["reason"] == "LossDiverged"
    lines = runs.history("diverging")
    assert divergence.PATIENCE <= len(lines) < 120
    assert lines[-1]["loss"] > lines[0]["loss"] + divergence.MIN_RISE
    assert runs.case_result("fine")["finished"] is True


def test_a_loss_of_nan_names_the_host_that_computed_it(runs: FailingCases) -> None:
    found = [runs.case_result("broken-rank", rank)["error"] for rank in (0, 1)]
    assert found[0] == found[1]
    assert found[0]["reason"] == "LossNotFinite"
    expected = f"The loss became nan at step 1 on host {socket.gethostname()} with"
    assert found[0]["message"].startswith(expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_without_fp16_the_first_nan_gradients_end_the_run(
    runs: FailingCases, strategy: str
) -> None:
    error = runs.case_result(f"broken-{strategy}")["error"]
    assert error["reason"] == "LossNotFinite"
    assert "gradient norm" in error["message"]
    assert "step 1 " in error["message"]
