"""The speed, utilisation and memory that a run reports, and its history on a full volume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from finetune_trainer.training.throughput import Throughput, peak_memory_bytes

from tests.trainer.failing_cases import FailingCases
from tests.trainer.volumes import on_small_volume


def test_steps_that_do_not_fit_on_a_full_volume_are_written_later(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from finetune_trainer.training.throughput import History\n"
        "there = Path(sys.argv[1]); history = History(there / 'train-1.jsonl', rank=0)\n"
        "history.append(step=0)\n"
        "try:\n    (there / 'filler').open('wb', buffering=0).write(b'0' * 2**23)\n"
        "except OSError:\n    pass\n"
        "for step in range(1, 200):\n    history.append(step=step)\n"
        "before = (there / 'train-1.jsonl').read_text().count('\\n')\n"
        "(there / 'filler').unlink(); history.append(step=200)\n"
        "print(before, (there / 'train-1.jsonl').read_text())\n"
    )
    before, history = on_small_volume(tmp_path, code).split(" ", 1)
    assert int(before) < 200
    assert [json.loads(line)["step"] for line in history.splitlines() if line] == list(range(201))


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


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> FailingCases:
    cases = FailingCases(tmp_path_factory.mktemp("throughput"))
    constant = {"schedule": "constant", "warmupRatio": 0}
    cases.train("fine", [cases.case("fine", method="Full", training=constant)])
    return cases


def test_every_step_reports_mfu_data_wait_and_memory(runs: FailingCases) -> None:
    reported = runs.case_result("fine")["reported"]
    assert 0 < reported["mfu"] < 1
    assert 0 <= reported["data_wait_share"] < 1
    assert reported["peak_memory_bytes"] > 50e6
    facts = runs.case_result("fine")["facts"]
    assert 0 < facts["mfu"] < 1
    assert facts["peakMemoryBytes"] >= reported["peak_memory_bytes"]
