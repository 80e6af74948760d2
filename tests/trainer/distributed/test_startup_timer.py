"""The start of a rank: what it imports, and the seconds of each part that it reports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from finetune_api.progress import Progress
from finetune_api.protocol import ExitCode
from finetune_api.run_config import RunConfig
from finetune_trainer.runtime.telemetry import (
    RANK_FOLDER_ENV,
    Report,
    read_rank_files,
    serve_telemetry,
)

from tests.trainer.jobs import environment, free_port, make_run, write_data, write_run
from tests.trainer.test_train import Stage

NEVER = (
    "datasets",
    "pandas",
    "pyarrow",
    "scipy",
    "sklearn",
    "tensorboard",
    "torch.utils.tensorboard",
    "torchvision",
    "mlflow",
    "vllm",
    "wandb",
)
PARTS = ["launch", "imports", "rendezvous", "model", "wrap", "data", "checkpoint", "first_step"]
LISTED = (
    "import sys, json; from finetune_trainer.training import worker; worker.main(); "
    "print(json.dumps([n for n, m in sys.modules.items() if m]), file=open(sys.argv[1], 'w'))"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A worker that trained adapters under DDP, and left the names of its modules."""
    root = tmp_path_factory.mktemp("worker")
    write_data(root / "job" / "data", tiny_model_folder)
    run = make_run(root, tiny_model_folder, world_size=1, steps=2)
    (root / "ranks").mkdir()
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    env = environment(
        FINETUNE_RUN_CONFIG=str(write_run(run, root / "run.json")),
        **{RANK_FOLDER_ENV: str(root / "ranks")},
        **alone,
        MASTER_PORT=str(free_port()),
    )
    command = [sys.executable, "-c", LISTED, str(root / "modules.json")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return root


def test_a_worker_imports_only_what_it_computes_with(trained: Path) -> None:
    loaded = set(json.loads((trained / "modules.json").read_text()))
    assert {"torch", "transformers", "peft"} <= loaded
    assert not loaded & {*NEVER, "bitsandbytes", "deepspeed"}


def test_a_worker_reports_the_seconds_of_every_part_of_its_start(trained: Path) -> None:
    (state,) = read_rank_files(trained / "ranks")
    spent = Progress.model_validate(
        {"stage": "train", "attempt": 1, **start_fields(state)}
    ).start_seconds
    assert spent is not None
    assert set(PARTS) <= set(spent)
    assert all(seconds >= 0 for seconds in spent.values())
    assert spent["imports"] > spent["checkpoint"]


def start_fields(state: dict[str, Any]) -> dict[str, Any]:
    return {name: state[name] for name in ("start_seconds", "step")}


def test_metrics_have_every_part_of_the_start() -> None:
    report = Report("train", 1)
    report.update(start_seconds={"imports": 4.5, "model": 1.25})
    server = serve_telemetry(report)
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as answer:
        text = answer.read().decode()
    server.shutdown()
    server.server_close()
    assert 'finetune_train_start_seconds{part="imports"} 4.5' in text
    assert 'finetune_train_start_seconds{part="model"} 1.25' in text


def test_the_start_time_of_a_process_comes_from_the_kernel() -> None:
    code = (
        "import time; t = time.time(); "
        "from finetune_trainer.distributed.startup_timer import process_start_time; "
        "print(t - process_start_time(), time.process_time())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    before, computed = map(float, done.stdout.split())
    # The kernel counts in hundredths of a second.
    assert -0.05 < before < 60
    assert computed > 0


def test_a_pod_that_waits_for_others_can_be_stopped(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    run = make_run(tmp_path, tiny_model_folder, world_size=2)
    topology = {"nodes": 2, "gpus_per_node": 1}
    alone = RunConfig.model_validate(
        run.model_copy(update={"plan": run.require_plan().model_copy(update=topology)}).model_dump()
    )
    stage = Stage(tmp_path / "a", alone)
    stage.wait_for(lambda progress: progress.message == "waiting for the other ranks")
    os.kill(stage.process.pid, signal.SIGTERM)
    code, result = stage.end()
    assert (code, result.outcome) == (ExitCode.PREEMPTED, "Preempted"), stage.text()[-3000:]
