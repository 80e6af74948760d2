"""The train stage as it runs in a pod: launcher, ranks, telemetry, one result."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_api.progress import Progress
from finetune_api.protocol import ExitCode
from finetune_api.run_config import RunConfig
from finetune_api.stage_result import StageResult
from finetune_trainer.distributed.launcher import is_preempted
from finetune_trainer.runtime.errors import RetryableError
from finetune_trainer.runtime.telemetry import RANK_FOLDER_ENV, read_rank_files
from finetune_trainer.train import collect_result
from safetensors.numpy import load_file, save_file

from tests.trainer.jobs import environment, free_port, losses, make_run, write_data, write_run
from tests.trainer.tiny import tiny_model

STEPS = 150
"""Enough that a stop comes in the middle, on a fast machine and with rare telemetry too."""


class Stage:
    """One process of the train stage, polled and stopped from outside as in a pod."""

    prefix: Sequence[str] = ()
    """Command that starts the process."""

    def __init__(self, folder: Path, run: RunConfig) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        env = environment(
            FINETUNE_RUN_CONFIG=str(write_run(run, folder / "run.json")),
            FINETUNE_TERMINATION_PATH=str(folder / "result.json"),
            FINETUNE_TELEMETRY_PORT=str(self.port),
            FINETUNE_RENDEZVOUS_PORT=str(free_port()),
        )
        self.log = (folder / "log.txt").open("w")
        self.process = subprocess.Popen(
            [*self.prefix, sys.executable, "-m", "finetune_trainer.train"],
            env=env,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    def wait_for(self, condition: Callable[[Progress], bool]) -> Progress:
        """The first progress that meets the condition; fails when the stage ends before."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.folder / "log.txt").read_text()[-4000:]
            try:
                progress = Progress.model_validate_json(self.get("/progress"))
            except OSError:
                continue
            if condition(progress):
                return progress
            time.sleep(0.02)
        raise AssertionError("the stage never reached the condition")

    def rank_files(self) -> list[dict[str, Any]]:
        """The last reports of the ranks of this pod, as the stage reads them."""
        child = child_named("finetune_trainer.training.worker", self.process.pid)
        environ = Path(f"/proc/{child}/environ").read_text()
        folder = re.search(f"{RANK_FOLDER_ENV}=([^\0]*)", environ)
        assert folder
        return read_rank_files(Path(folder[1]))

    def end(self) -> tuple[int, StageResult]:
        code = self.process.wait(timeout=120)
        self.log.close()
        return code, StageResult.model_validate_json((self.folder / "result.json").read_bytes())

    def text(self) -> str:
        return (self.folder / "log.txt").read_text()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "models" / "tiny")


def settings(**more: Any) -> dict[str, Any]:
    return {"strategy": "ZeRO2", "steps": STEPS, **more}


def test_a_stopped_attempt_is_resumed_by_the_next_one(tmp_path: Path, model: Path) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    for root in (straight, stopped):
        write_data(root / "job" / "data", model)
    first = Stage(tmp_path / "a", make_run(straight, model, **settings()))
    progress = first.wait_for(lambda p: p.step >= 2)
    assert (progress.world_size, progress.engine, progress.total_steps) == (
        2,
        "DeepSpeedEngine",
        STEPS,
    )
    assert [rank.rank for rank in progress.ranks] == [0, 1]
    assert progress.loss is not None
    assert progress.tokens_per_second is not None
    assert progress.eta_seconds is not None
    metrics = first.get("/metrics")
    assert re.search(r"^finetune_train_loss \d", metrics, re.M)
    assert "finetune_train_rank_heartbeat_timestamp_seconds{host=" in metrics
    code, result = first.end()
    assert (code, result.outcome) == (ExitCode.OK, "Succeeded"), first.text()[-3000:]
    assert result.train is not None
    assert result.train.steps == STEPS
    assert (straight / "job" / "output" / "adapter_model.safetensors").exists()
    charts = (straight / "job" / "report" / "tensorboard").glob("events*")
    assert sum(chart.stat().st_size for chart in charts) > STEPS * 100

    second = Stage(tmp_path / "b", make_run(stopped, model, **settings()))
    second.wait_for(lambda p: p.step >= 2)
    second.process.send_signal(signal.SIGTERM)
    code, result = second.end()
    assert (code, result.outcome) == (ExitCode.PREEMPTED, "Preempted"), second.text()[-3000:]
    assert result.train is not None
    at = result.train.steps
    assert 2 <= at < STEPS
    assert not (stopped / "job" / "output").exists()

    third = Stage(tmp_path / "c", make_run(stopped, model, attempt=2, **settings()))
    code, result = third.end()
    assert code == ExitCode.OK, third.text()[-3000:]
    assert result.train is not None
    assert result.train.resumed_from_step == at
    together = losses(stopped / "job", 1) + losses(stopped / "job", 2)
    assert together == losses(straight / "job")


@pytest.mark.parametrize("stage", ["prepare", "train", "evaluate", "export"])
def test_a_stop_request_during_the_imports_is_not_lost(
    tmp_path: Path, model: Path, stage: str
) -> None:
    """The kernel drops a signal to the first process of a pod that has no handler for it."""
    code = (
        "import os, runpy, signal, sys\n"
        "class StopDuringImports:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'finetune_api.run_config':\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, StopDuringImports())\n"
        f"runpy.run_module('finetune_trainer.{stage}', run_name='__main__')\n"
    )
    run = write_run(make_run(tmp_path, model, strategy="DDP"), tmp_path / "run.json")
    env = environment(
        FINETUNE_RUN_CONFIG=str(run),
        FINETUNE_TERMINATION_PATH=str(tmp_path / "result.json"),
        FINETUNE_TELEMETRY_PORT="0",
    )
    done = subprocess.run([sys.executable, "-c", code], env=env, timeout=120, check=False)
    assert done.returncode == ExitCode.PREEMPTED
    result = StageResult.model_validate_json((tmp_path / "result.json").read_bytes())
    assert (result.stage, result.outcome) == (stage, "Preempted")


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([None, None], False),
        ([76, None], True),
        ([76, 1], True),
        ([-15, None], True),
        ([-15, 76], True),
        ([1, None], False),
        ([76, -9], False),
        ([-15, -9], False),
        ([0, 0], False),
    ],
)
def test_a_preempted_rank_is_recognised_although_others_fail_without_it(
    codes: list[int | None], expected: bool
) -> None:
    assert is_preempted(codes) == expected


def test_a_loss_that_is_not_a_number_is_the_users_error(tmp_path: Path, model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] = np.full_like(weights["model.norm.weight"], np.nan)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    write_data(tmp_path / "job" / "data", model)
    stage = Stage(tmp_path / "a", make_run(tmp_path, model, strategy="DDP"))
    code, result = stage.end()
    assert code == ExitCode.USER_ERROR, stage.text()[-3000:]
    assert result.failure is not None
    assert result.failure.reason == "LossNotFinite"
    assert "step 1 " in result.failure.message
    assert result.failure.remedy is not None
    assert "Traceback" not in (tmp_path / "a" / "result.json").read_text()


def test_a_killed_rank_makes_the_attempt_retryable(tmp_path: Path, model: Path) -> None:
    write_data(tmp_path / "job" / "data", model)
    stage = Stage(tmp_path / "a", make_run(tmp_path, model, strategy="DDP", steps=100000))
    stage.wait_for(lambda p: p.step >= 1)
    os.kill(child_named("finetune_trainer.training.worker", stage.process.pid), signal.SIGKILL)
    code, result = stage.end()
    assert code == ExitCode.RETRYABLE, stage.text()[-3000:]
    assert result.failure is not None
    assert result.failure.reason in ("PeerLost", "RankFailed")


def test_a_pod_that_reaches_no_other_does_not_blame_its_memory(tmp_path: Path, model: Path) -> None:
    run = make_run(tmp_path, model, strategy="DDP")
    with pytest.raises(RetryableError) as caught:
        collect_result(run, tmp_path, 0, is_preempted=False)
    assert caught.value.failure.reason == "RendezvousFailed"
    assert "memory" not in caught.value.failure.message


def child_named(module: str, ancestor: int) -> int:
    """The first descendant of a process whose command line names a module."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and descends(int(entry.name), ancestor):
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if module.encode() in command and b"torch.distributed.run" not in command:
                return int(entry.name)
    raise AssertionError(f"no {module} below process {ancestor}")


def descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            return False
    return False


def test_history_has_a_line_for_every_step(tmp_path: Path, model: Path) -> None:
    write_data(tmp_path / "job" / "data", model)
    stage = Stage(tmp_path / "a", make_run(tmp_path, model, strategy="DDP", world_size=1, steps=3))
    code, _ = stage.end()
    assert code == ExitCode.OK, stage.text()[-3000:]
    lines = (tmp_path / "job" / "report" / "train-1.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
