"""Attempts that freeze or run out of disk space: what they report, what the next one finds."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from finetune_api.progress import Progress
from finetune_api.protocol import COLLECTIVE_TIMEOUT_ENV, ExitCode
from finetune_api.run_config import RunConfig
from finetune_trainer.checkpointing.checkpoint_folder import MARKER
from finetune_trainer.distributed import collectives
from finetune_trainer.distributed.heartbeat import Heartbeat
from finetune_trainer.runtime.errors import StageError
from torch import distributed as dist

from tests.trainer import pool
from tests.trainer.distributed.test_heartbeat import until
from tests.trainer.jobs import losses, make_run, write_data
from tests.trainer.kills import STEPS, Kill, Runs
from tests.trainer.test_train import Stage, child_named
from tests.trainer.tiny import tiny_model


def published(job: Path) -> dict[str, str]:
    """Digests of a job's published files, without the records of the older attempt alone."""
    found = {}
    for path in sorted(job.rglob("*")):
        name = path.relative_to(job).as_posix()
        own = name.startswith((".train-", "claims/", "report/train-1", "report/tensorboard"))
        if path.is_file() and not own:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.mark.parametrize("writing", [True, False])
def test_a_gang_that_was_frozen_and_replaced_ends_and_changes_nothing(
    tmp_path: Path, writing: bool
) -> None:
    runs = Runs(tmp_path, tiny_model(tmp_path / "models" / "tiny"))
    kill = Kill(rank=0, signum=signal.SIGSTOP, step=3, during_save=writing)
    older = runs.start("job", 1, kill, strategy="DDP", method="Full")
    until(lambda: "T" in state_of(older.pids[0]), seconds=240)
    older.kill(1, signal.SIGSTOP)
    codes, text = runs.attempt("job", 2, strategy="DDP", method="Full")
    assert codes == [0, 0], text
    left = published(runs.job("job"))
    assert any(name.startswith("output/") for name in left)
    for rank in (0, 1):
        older.kill(rank, signal.SIGCONT)
    assert older.wait() == [1, 1], older.text()
    assert published(runs.job("job")) == left
    reasons = [
        reason_of(tmp_path / "job" / "attempt-1" / f"error-0000{rank}.json") for rank in (0, 1)
    ]
    assert reasons == ["Fenced", "Fenced"], older.text()
    assert len(losses(runs.job("job"), 1) + losses(runs.job("job"), 2)) >= STEPS


def state_of(pid: int) -> str:
    """One-letter state of a process."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def reason_of(path: Path) -> str:
    """Reason of the failure in a rank's error file."""
    return str(json.loads(path.read_text())["failure"]["reason"])


class MemoryReporter:
    """Keeps the reports of a heartbeat in memory."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self.report_count = 0

    def report_beat(self, **fields: Any) -> None:
        self.state.update(fields)


def waits_for_files(folder: Path) -> None:
    """Rank 1 stops, as if its node were gone; rank 0 waits for a file of it."""
    dist.init_process_group("gloo")
    collectives.barrier()

    def give_up(error: BaseException) -> None:
        assert isinstance(error, StageError)
        (folder / "error").write_text(f"{error.failure.reason}: {error.failure.message}")
        os._exit(3)

    Heartbeat(MemoryReporter(), give_up)
    collectives.barrier()
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    collectives.barrier()


def test_a_rank_that_waits_for_files_of_a_dead_rank_gives_up(tmp_path: Path) -> None:
    ranks = pool.start(
        waits_for_files,
        tmp_path,
        world=2,
        folder=tmp_path / "logs",
        environment={COLLECTIVE_TIMEOUT_ENV: "15"},
    )
    try:
        until(lambda: ranks.running() == [1], seconds=120)
        error = (tmp_path / "error").read_text()
        assert error.startswith("RankStalled: "), error
        assert "rank 1 on host" in error
    finally:
        ranks.kill_all()


class SmallStage(Stage):
    """A training pod with a small volume of its own for the job's folder."""

    def __init__(self, folder: Path, run: RunConfig, size: int) -> None:
        self._job = Path(run.paths.job)
        root = [] if os.getuid() == 0 else ["--map-root-user"]
        script = (
            'mv "$1/data" "$1.data" && mount -t tmpfs -o size="$2" tmpfs "$1" && '
            'mv "$1.data" "$1/data" && shift 2 && exec "$@"'
        )
        self.prefix = [
            "unshare",
            "--mount",
            *root,
            "sh",
            "-c",
            script,
            "-",
            str(self._job),
            str(size),
        ]
        super().__init__(folder, run)

    @property
    def job(self) -> Path:
        """The job's folder as the pod sees it."""
        return Path(f"/proc/{self.process.pid}/root{self._job}")

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints."""
        found = self.job.glob(f"checkpoints/1/*/{MARKER}")
        return sorted(int(path.parent.name[5:]) for path in found)


def small_stage(root: Path, keep: int) -> SmallStage:
    """A run that keeps `keep` checkpoints, at the time when its volume cannot hold another one."""
    model = tiny_model(root / "models" / "tiny")
    write_data(root / "job" / "data", model)
    training = {"checkpoint": {"intervalSteps": 10, "keepLast": keep}}
    run = make_run(
        root, model, method="Full", world_size=1, strategy="DDP", steps=100000, training=training
    )
    stage = SmallStage(root / "a", run, 64 * 2**20)
    progress = stage.wait_for(lambda p: p.checkpoint_bytes is not None)
    until(lambda: len(stage.steps()) == keep, seconds=120)
    size = progress.checkpoint_bytes or 0

    def skipped_a_checkpoint(progress: Progress) -> bool:
        # Each time, because an old checkpoint may have been removed since.
        fill(stage.job, leave=size // 2)
        return "skipped the checkpoint" in (progress.message or "")

    stage.wait_for(skipped_a_checkpoint)
    return stage


def fill(folder: Path, leave: int) -> None:
    """Fill the volume of a folder until `leave` bytes are free."""
    state = os.statvfs(folder)
    excess = state.f_bavail * state.f_frsize - leave
    if excess <= 0:
        return
    # A checkpoint may use the space meanwhile: then the volume is full, too.
    with contextlib.suppress(OSError), (folder / "filler").open("ab", buffering=0) as file:
        file.write(b"\0" * excess)


def test_a_full_volume_skips_a_checkpoint_and_does_not_end_the_run(tmp_path: Path) -> None:
    stage = small_stage(tmp_path, keep=2)
    progress = Progress.model_validate_json(stage.get("/progress"))
    assert "the volume has no space" in (progress.message or "")
    assert progress.checkpoint_seconds is not None
    assert "finetune_train_checkpoint_bytes" in stage.get("/metrics")
    newest = max(stage.steps())
    stage.wait_for(lambda p: p.step > progress.step)
    # A required checkpoint replaces all older ones but the newest.
    stage.process.send_signal(signal.SIGTERM)
    code, result = stage.end()
    assert (code, result.outcome) == (ExitCode.PREEMPTED, "Preempted"), stage.text()[-3000:]
    assert result.train is not None
    assert result.train.steps > newest
    assert f"Saved a checkpoint step={result.train.steps} " in stage.text()


def test_a_required_checkpoint_on_a_full_volume_fails_with_no_space_left(tmp_path: Path) -> None:
    stage = small_stage(tmp_path, keep=1)
    stage.process.send_signal(signal.SIGTERM)
    code, result = stage.end()
    assert code == ExitCode.RETRYABLE, stage.text()[-3000:]
    assert result.failure is not None
    assert result.failure.reason == "NoSpaceLeft"
    assert " bytes and the volume has " in result.failure.message


@pytest.mark.parametrize("target", ["the pod", "one rank"])
def test_a_stop_before_the_first_step_ends_at_once(tmp_path: Path, target: str) -> None:
    """During the imports, which take seconds; loading a tiny model does not."""
    model = tiny_model(tmp_path / "models" / "tiny")
    write_data(tmp_path / "job" / "data", model)
    stage = Stage(tmp_path / "a", make_run(tmp_path, model, strategy="DDP", steps=100000))
    stage.wait_for(lambda progress: progress.message == "importing libraries")
    pid = stage.process.pid
    if target == "one rank":
        pid = child_named("finetune_trainer.training.worker", pid)
    os.kill(pid, signal.SIGTERM)
    code, result = stage.end()
    assert (code, result.outcome) == (ExitCode.PREEMPTED, "Preempted"), stage.text()[-3000:]
    assert not list((tmp_path / "job").glob("checkpoints/*/*"))
