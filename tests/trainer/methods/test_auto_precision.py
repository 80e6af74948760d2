"""Auto takes the faster of bf16 and fp32, on which all ranks and all attempts agree."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.methods import auto_precision
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


def record(runs: FailingCases, name: str, precision: str) -> None:
    """Write the decision of an earlier attempt."""
    path = runs.root / name / "job" / auto_precision.FILE_NAME
    path.write_text(json.dumps({"precision": precision}))


def train(
    runs: FailingCases, name: str, environment: dict[str, str], case: Any = None
) -> dict[str, Any]:
    """Train a case with precision Auto; returns the facts, on which both ranks agree."""
    path = runs.root / f"{name}.json"
    path.write_text(json.dumps([case or runs.case(name, **AUTO)]))
    folder = runs.root / f"logs-{name}"
    pool.run(drive, path, world=2, folder=folder, environment=environment)
    ranks = [runs.case_result(name, rank) for rank in (0, 1)]
    assert ranks[0]["facts"]["precision"] == ranks[1]["facts"]["precision"]
    assert ranks[0]["reported"]["precision"] == ranks[0]["facts"]["precision"]
    facts: dict[str, Any] = ranks[0]["facts"]
    return facts


def test_a_cpu_without_bf16_instructions_trains_in_fp32_and_its_next_attempt_too(
    runs: FailingCases,
) -> None:
    assert train(runs, "slow", SLOW_BF16)["precision"] == "fp32"
    job = runs.root / "slow" / "job"
    assert json.loads((job / auto_precision.FILE_NAME).read_text()) == {"precision": "fp32"}
    again = make_run(runs.root / "slow", runs.model, attempt=2, **AUTO)
    assert auto_precision.require_decided(again).spec.training.precision == "fp32"


def test_a_resumed_job_keeps_the_precision_of_its_checkpoint_on_a_slower_node(
    runs: FailingCases,
) -> None:
    case = runs.case("resumed", **AUTO)
    record(runs, "resumed", "bf16")
    assert train(runs, "resumed", SLOW_BF16, case=case)["precision"] == "bf16"


def decide(run_file: Path) -> None:
    """Decide on a gang whose second rank alone has no fast bf16."""
    from finetune_api.run_config import RunConfig
    from finetune_trainer.methods.auto_precision import decide_precision
    from finetune_trainer.runtime.fencing import Attempt
    from torch import distributed as dist

    if os.environ["RANK"] == "1":
        os.environ.update(SLOW_BF16)
    dist.init_process_group("gloo")
    run = RunConfig.model_validate_json(run_file.read_text())
    attempt = Attempt(Path(run.paths.job), run.attempt)
    if dist.get_rank() == 0:
        attempt.claim()
    decided = decide_precision(run, torch.device("cpu")).spec.training.precision
    (run_file.parent / f"decided-{dist.get_rank()}").write_text(decided)


def test_one_slow_rank_decides_for_all(runs: FailingCases) -> None:
    run_file = runs.root / "run.json"
    run_file.write_text(json.dumps(runs.case("mixed", **AUTO)["run"]))
    pool.run(decide, run_file, world=2, folder=runs.root / "logs")
    assert {(runs.root / f"decided-{rank}").read_text() for rank in (0, 1)} == {"fp32"}


def decide_beside_garbage(run_file: Path) -> None:
    """Decide on a gang whose second rank would read another record than the first one."""
    if os.environ["RANK"] == "1":
        run = json.loads(run_file.read_text())
        run["paths"]["job"] = str(run_file.parent / "garbage")
        run_file = run_file.with_name("run-1.json")
        run_file.write_text(json.dumps(run))
    decide(run_file)


def test_only_rank_0_reads_the_record(runs: FailingCases) -> None:
    run_file = runs.root / "run.json"
    run_file.write_text(json.dumps(runs.case("first", **AUTO)["run"]))
    record(runs, "first", "bf16")
    (runs.root / "garbage").mkdir()
    (runs.root / "garbage" / auto_precision.FILE_NAME).write_text("{")
    pool.run(decide_beside_garbage, run_file, world=2, folder=runs.root / "logs")
    assert {(runs.root / f"decided-{rank}").read_text() for rank in (0, 1)} == {"bf16"}


def test_the_faster_format_of_this_cpu_is_taken(runs: FailingCases) -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    expected = {"bf16", "fp32"} if "avx512_bf16" in flags else {"fp32"}
    assert train(runs, "native", {})["precision"] in ({"bf16"} if "amx_bf16" in flags else expected)


def test_a_precision_that_the_user_set_is_not_measured(runs: FailingCases) -> None:
    run = make_run(runs.root / "set", runs.model, training={"precision": "bf16"})
    assert auto_precision.decide_precision(run, torch.device("cpu")) is run
    assert auto_precision.require_decided(run) is run


def test_the_merge_refuses_a_job_whose_precision_is_not_recorded(runs: FailingCases) -> None:
    run = make_run(runs.root / "lost", runs.model, **AUTO)
    with pytest.raises(RetryableError) as raised:
        auto_precision.require_decided(run)
    assert raised.value.failure.reason == "NoTrainedWeights"
    assert raised.value.failure.file == str(runs.root / "lost" / "job" / "precision.json")
