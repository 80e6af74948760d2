"""Auto takes the faster of bf16 and fp32, on which all ranks and all attempts agree."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.train_plan import MemoryEstimate
from finetune_trainer.methods import auto_precision
from finetune_trainer.runtime import name_cache
from finetune_trainer.runtime.errors import RetryableError

from tests.trainer import pool
from tests.trainer.drive_training import drive
from tests.trainer.failing_cases import FailingCases
from tests.trainer.jobs import make_run

SLOW_BF16 = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
"""Hides the bf16 instructions of the CPU from the library that multiplies matrices."""
AUTO: dict[str, Any] = {"training": {"precision": "Auto"}}


@pytest.fixture
def runs(tmp_path: Path) -> FailingCases:
    return FailingCases(tmp_path)


def test_a_cpu_without_bf16_instructions_trains_in_fp32_and_its_next_attempt_too(
    runs: FailingCases,
) -> None:
    path = runs.root / "cases.json"
    path.write_text(json.dumps([runs.case("slow", **AUTO)]))
    pool.run(drive, path, world=2, folder=runs.root / "logs", environment=SLOW_BF16)
    for rank in (0, 1):
        found = runs.case_result("slow", rank)
        assert found["facts"]["precision"] == found["reported"]["precision"] == "fp32"
    recorded = runs.root / "slow" / "job" / auto_precision.FILE_NAME
    assert json.loads(recorded.read_text()) == {"precision": "fp32"}
    again = make_run(runs.root / "slow", runs.model, attempt=2, **AUTO)
    assert auto_precision.require_decided(again).spec.training.precision == "fp32"


def decide(run_files: list[Path]) -> None:
    """Decide on a gang whose second rank has no fast bf16 and an unreadable record."""
    from finetune_api.run_config import RunConfig
    from finetune_trainer.methods.auto_precision import decide_precision
    from finetune_trainer.runtime.fencing import Attempt
    from torch import distributed as dist

    rank = int(os.environ["RANK"])
    if rank == 1:
        os.environ.update(SLOW_BF16)
    dist.init_process_group("gloo")
    for run_file in run_files:
        run = RunConfig.model_validate_json(run_file.read_text())
        if rank == 0:
            Attempt(Path(run.paths.job), run.attempt).claim()
        else:
            paths = run.paths.model_copy(update={"job": str(run_file.parent / "unreadable")})
            run = run.model_copy(update={"paths": paths})
        decided = decide_precision(run, torch.device("cpu")).spec.training.precision
        run_file.with_suffix(f".{rank}").write_text(decided)


def test_one_slow_rank_decides_for_all_unless_rank_0_has_a_recorded_decision(
    runs: FailingCases,
) -> None:
    expected = {"first": "fp32", "resumed": "bf16"}
    files = [runs.root / f"{name}.json" for name in expected]
    for file in files:
        file.write_text(json.dumps(runs.case(file.stem, **AUTO)["run"]))
    record = Path("job") / auto_precision.FILE_NAME
    (runs.root / "resumed" / record).write_text(json.dumps({"precision": "bf16"}))
    (runs.root / "unreadable").mkdir()
    (runs.root / "unreadable" / record.name).write_text("{")
    pool.run(decide, files, world=2, folder=runs.root / "logs")
    for file in files:
        decided = {file.with_suffix(f".{rank}").read_text() for rank in (0, 1)}
        assert decided == {expected[file.stem]}


MEMORY = MemoryEstimate(weights=4, gradients=0, optimizer=0, activations=1, total=5, available=10)


def test_the_faster_format_of_this_cpu_is_taken() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    prefers = auto_precision.prefers_bf16(torch.device("cpu"), MEMORY)
    if "amx_bf16" in flags:
        assert prefers
    elif "avx512_bf16" not in flags:
        assert not prefers


@pytest.mark.parametrize(
    ("capability", "available", "prefers"),
    [
        ((9, 0), 10, True),
        ((8, 0), 10, True),
        ((7, 5), 9, True),  # fp32 might not fit
        ((7, 5), 10, False),
    ],
)
def test_a_gpu_without_bf16_takes_fp32_where_twice_the_memory_fits(
    capability: tuple[int, int], available: int, prefers: bool
) -> None:
    memory = MEMORY.model_copy(update={"available": available})
    assert auto_precision.gpu_prefers_bf16(capability, memory) is prefers


def test_a_precision_that_the_user_set_is_not_measured(runs: FailingCases) -> None:
    run = make_run(runs.root / "set", runs.model, training={"precision": "bf16"})
    assert auto_precision.decide_precision(run, torch.device("cpu")) is run
    assert auto_precision.require_decided(run) is run


def test_the_merge_refuses_a_job_whose_precision_is_not_recorded(
    runs: FailingCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name_cache, "CACHED_SECONDS", 0.0)
    run = make_run(runs.root / "lost", runs.model, **AUTO)
    with pytest.raises(RetryableError) as raised:
        auto_precision.require_decided(run)
    assert raised.value.failure.reason == "NoTrainedWeights"
    assert raised.value.failure.file == str(runs.root / "lost" / "job" / "precision.json")
