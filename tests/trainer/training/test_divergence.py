"""Runs that cannot succeed end with an error and a remedy; noisy ones continue."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.strategies import loss_scale
from finetune_trainer.training import divergence
from finetune_trainer.training.divergence import DivergenceDetector, LossMonitor
from finetune_trainer.training.throughput import Throughput, peak_memory_bytes

from tests.trainer import pool
from tests.trainer.drive_training import drive
from tests.trainer.jobs import Runs, make_run, to_json, write_data
from tests.trainer.tiny import tiny_model

STRATEGIES = ("DDP", "ZeRO2", "ZeRO3", "FSDP")


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


def test_a_rising_loss_does_not_end_a_grpo_run() -> None:
    monitor = LossMonitor(detect_divergence=False)
    for step in range(1, 200):
        monitor.check_step(step, float(step), grad_norm=1.0, learning_rate=1e-3, is_skipped=False)


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan)])
def test_a_loss_or_norm_that_is_not_finite_ends_the_run(loss: float, norm: float) -> None:
    with pytest.raises(UserError) as raised:
        LossMonitor(detect_divergence=True).check_step(7, loss, norm, 1e-3, is_skipped=False)
    assert raised.value.failure.reason == "LossNotFinite"
    assert "step 7" in raised.value.failure.message


def test_only_consecutive_overflows_end_an_fp16_run() -> None:
    monitor = LossMonitor(detect_divergence=True)
    for step in range(1, 4 * divergence.MAX_OVERFLOWS):
        monitor.check_step(step, 2.0, math.inf if step % 3 else 1.0, 1e-3, is_skipped=step % 3 != 0)
    for step in range(1, divergence.MAX_OVERFLOWS):
        monitor.check_step(100 + step, 2.0, math.inf, 1e-3, is_skipped=True)
    with pytest.raises(UserError, match="in fp16") as raised:
        monitor.check_step(100 + divergence.MAX_OVERFLOWS, 2.0, math.inf, 1e-3, is_skipped=True)
    assert raised.value.failure.reason == "LossNotFinite"


def test_speed_data_wait_and_mfu_are_smoothed_over_steps() -> None:
    throughput = Throughput(total_steps=10, first_step=2, peak_flops=1000.0)
    throughput.add_step(3, tokens=100, seconds=2.0, data_wait_seconds=0.5, flops=800.0)
    metrics = throughput.smoothed_metrics()
    assert metrics == {
        "tokens_per_second": 50.0,
        "eta_seconds": 14.0,
        "data_wait_share": 0.25,
        "mfu": 0.4,
    }
    throughput.add_step(4, tokens=100, seconds=1.0, data_wait_seconds=0.0, flops=800.0)
    assert throughput.smoothed_metrics()["mfu"] == pytest.approx(
        (0.9 * 800 + 800) / (0.9 * 2 + 1) / 1000
    )
    assert (throughput.tokens, throughput.mean_tokens_per_second) == (200, pytest.approx(200 / 3))
    assert throughput.mean_mfu == pytest.approx(1600 / 3 / 1000)


def test_without_known_peak_flops_there_is_no_mfu() -> None:
    throughput = Throughput(total_steps=1, first_step=0)
    throughput.add_step(1, tokens=1, seconds=1.0, flops=5.0)
    assert "mfu" not in throughput.smoothed_metrics()
    assert throughput.mean_mfu is None


def test_peak_memory_of_a_cpu_process_is_its_peak_resident_set() -> None:
    before = peak_memory_bytes("cpu")
    held = np.ones(50_000_000)
    assert peak_memory_bytes("cpu") >= max(before, held.nbytes)


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


def drive_broken(path: Path) -> None:
    """Train with gradients that are NaN although the losses are finite."""
    from torch.nn.modules.module import register_module_full_backward_hook

    def spoil(module: Any, down: Any, up: Any) -> Any:
        return tuple(each * math.nan for each in down) if is_feed_forward(module) else None

    def is_feed_forward(module: Any) -> bool:
        return type(module).__name__ == "LlamaMLP"

    with register_module_full_backward_hook(spoil):
        drive(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("health")
    model = tiny_model(root / "models" / "tiny")

    def case(name: str, rate: float | None = None, **how: Any) -> dict[str, Any]:
        write_data(root / name / "job" / "data", model)
        if how.get("method", "LoRA") == "LoRA":
            how["lora"] = {"dropout": 0}
        run = make_run(root / name, model, **how)
        changes = {"peak_flops": 1e12, **({"learning_rate": rate} if rate else {})}
        run = run.model_copy(update={"plan": run.plan.model_copy(update=changes)})
        return {"name": name, "run": to_json(run), "fails": True}

    def train(name: str, cases: list[dict[str, Any]], function: Any = drive, *more: Any) -> None:
        path = root / f"{name}.json"
        path.write_text(json.dumps(cases))
        pool.run(function, path, *more, world=2, folder=root / f"logs-{name}")

    constant = {"schedule": "constant", "warmupRatio": 0}
    train(
        "plain",
        [
            case("diverging", 3.0, method="Full", steps=120, training=constant),
            case("fine", method="Full", training=constant),
            case("fp32", training={"precision": "fp32"}),
        ],
    )
    train("broken", [case(f"broken-{s}", strategy=s) for s in STRATEGIES], drive_broken)
    fp16: dict[str, Any] = {"training": {"precision": "fp16"}}
    train("refused", [case("refused", strategy="ZeRO2", **fp16)], drive_without_fp16)
    cases = [case(f"half-{s}", strategy=s, **fp16) for s in STRATEGIES]
    train("half", cases, drive_scaled, 16)
    for name, power in (("high", 26), ("endless", 60)):
        cases = [case(f"{name}-{s}", strategy=s, steps=24, **fp16) for s in STRATEGIES]
        train(name, cases, drive_scaled, power)
    return Runs(root)


def test_a_real_run_that_diverges_ends_with_an_error(runs: Runs) -> None:
    error = runs.case_result("diverging")["error"]
    assert error["reason"] == "LossDiverged"
    lines = runs.history("diverging")
    assert divergence.PATIENCE <= len(lines) < 120
    assert lines[-1]["loss"] > lines[0]["loss"] + divergence.MIN_RISE
    assert runs.case_result("fine")["finished"] is True


def test_every_step_reports_mfu_data_wait_and_memory(runs: Runs) -> None:
    reported = runs.case_result("fine")["reported"]
    assert 0 < reported["mfu"] < 1
    assert 0 <= reported["data_wait_share"] < 1
    assert reported["peak_memory_bytes"] > 50e6
    facts = runs.case_result("fine")["facts"]
    assert 0 < facts["mfu"] < 1
    assert facts["peakMemoryBytes"] >= reported["peak_memory_bytes"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_without_fp16_the_first_nan_gradients_end_the_run(runs: Runs, strategy: str) -> None:
    error = runs.case_result(f"broken-{strategy}")["error"]
    assert error["reason"] == "LossNotFinite"
    assert "gradient norm" in error["message"]
    assert "step 1 " in error["message"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fp16_has_nearly_the_losses_of_fp32(runs: Runs, strategy: str) -> None:
    fp16 = [line["loss"] for line in runs.history(f"half-{strategy}")]
    exact = [line["loss"] for line in runs.history("fp32")]
    assert fp16 != exact
    assert fp16 == pytest.approx(exact, rel=2e-3)


def test_fp16_under_zero_is_refused_where_deepspeed_lacks_it(runs: Runs) -> None:
    error = runs.case_result("refused")["error"]
    assert error["reason"] == "PrecisionUnsupported"
    assert "bf16 or fp32" in error["remedy"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_step_that_overflows_is_skipped_counted_and_reported(runs: Runs, strategy: str) -> None:
    lines = runs.history(f"high-{strategy}")
    skipped = [line["grad_norm"] is None for line in lines]
    assert skipped[0]
    assert not skipped[-1]
    assert lines[-1]["skipped_steps"] == sum(skipped)
    seen = runs.case_result(f"high-{strategy}")
    assert seen["finished"] is True
    assert seen["reported"]["measures"]["skipped_steps"] == sum(skipped)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_fp16_run_whose_steps_all_overflow_ends_with_an_error(runs: Runs, strategy: str) -> None:
    error = runs.case_result(f"endless-{strategy}")["error"]
    assert error["reason"] == "LossNotFinite"
    assert "fp16" in error["message"]
    assert len(runs.history(f"endless-{strategy}")) == divergence.MAX_OVERFLOWS - 1
