"""Checkpoints saved alongside training: what a step waits for, what is kept, and what goes wrong.

The ranks here train a plain network under the real DDP strategy; test_restore and test_strategies
show what a checkpoint holds and how it is restored under every strategy.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.finetunejob import Checkpointing, Method, Training
from finetune_trainer.checkpointing import checkpoint_folder, restore, retention, sharded_format
from finetune_trainer.checkpointing.checkpoint_folder import MARKER
from finetune_trainer.checkpointing.restore import TrainerState
from finetune_trainer.checkpointing.saver import Saver
from finetune_trainer.distributed import collectives
from finetune_trainer.runtime.errors import RetryableError
from finetune_trainer.runtime.fencing import Attempt
from finetune_trainer.strategies.base import Fragment, StrategyConfig
from finetune_trainer.strategies.ddp import DDPStrategy
from torch import distributed as dist

from tests.trainer import pool

pytestmark = pytest.mark.filterwarnings("default")
FINGERPRINT = {"run": "this"}


class Counter:
    """A stateful object with a number and a tensor."""

    def __init__(self) -> None:
        self.saved: dict[str, Any] = {"count": 0, "tensor": torch.zeros(2)}

    def state_dict(self) -> Any:
        return self.saved

    def load_state_dict(self, state_dict: Any) -> None:
        self.saved = state_dict


SAVES = 5


class Rank:
    """One rank with a strategy around a network of `width` x 64 weights."""

    def __init__(self, job: Path, width: int, attempt: int = 1, **settings: Any) -> None:
        torch.manual_seed(0)
        config = StrategyConfig(
            strategy="DDP",
            method=Method(type="Full"),
            training=Training(precision="fp32"),
            device=torch.device("cpu"),
            learning_rate=1e-2,
            micro_batch_size=1,
            offload=False,
            autocast=False,
        )
        self.strategy = DDPStrategy(torch.nn.Sequential(torch.nn.Embedding(width, 64)), config)
        self.job, self.attempt, self.width = job, attempt, width
        self.counter = Counter()
        if dist.get_rank() == 0:
            Attempt(job, attempt).claim()
        collectives.barrier()
        checkpointing = Checkpointing(**settings)
        stateful = {"counter": self.counter}
        self.saver = Saver(job, attempt, self.strategy, FINGERPRINT, checkpointing, stateful)

    def step(self, step: int) -> float:
        """Train a step; returns its seconds."""
        started = time.monotonic()
        torch.manual_seed(step)
        with self.strategy.accumulate(is_last=True):
            rows = torch.randint(self.width, (4096,))
            self.strategy.backward(self.strategy.model(rows).pow(2).sum())
        self.saver.wait_for_staging()
        self.strategy.step(1e-2)
        self.saver.poll()
        return time.monotonic() - started

    def weights(self) -> torch.Tensor:
        """A copy of all weights."""
        return torch.cat([weight.flatten().clone() for _, weight in self.strategy.gather_weights()])

    def resume(self) -> TrainerState:
        """Restore the latest usable checkpoint."""
        stateful = {"counter": self.counter}
        return restore.restore_latest(self.job, self.attempt, self.strategy, FINGERPRINT, stateful)


def in_process_group(work: Callable[..., None], *arguments: Any) -> None:
    """Run `work` in a process group, then destroy the group."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    work(*arguments)
    collectives.barrier()
    dist.destroy_process_group()


def steps_of(job: Path) -> list[int]:
    return sorted(int(path.parent.name[5:]) for path in (job / "checkpoints").glob(f"*/*/{MARKER}"))


def save_large_checkpoints(job: Path) -> None:
    """Save 960 MB five times while training continues, and write how long each save took."""
    rank = Rank(job, 1_250_000, keepLast=1)
    quiet = [rank.step(step) for step in range(1, 4)]
    during_saves = []
    for step in range(4, 100):
        if not rank.saver.is_saving and len(rank.saver.timings) < SAVES:
            rank.saver.save(TrainerState(step))
        during_saves.append(rank.step(step))
        if len(rank.saver.timings) == SAVES and not rank.saver.is_saving:
            break
    rank.saver.close()
    report = {
        "timings": [(each.blocked_seconds, each.write_seconds) for each in rank.saver.timings],
        "quiet": sorted(quiet)[1],
        "during_saves": sorted(during_saves)[len(during_saves) // 2],
    }
    (job / f"timings-{dist.get_rank()}.json").write_text(json.dumps(report))


def test_a_step_waits_less_than_a_twentieth_of_the_writing(tmp_path: Path) -> None:
    pool.run(in_process_group, save_large_checkpoints, tmp_path, world=2, folder=tmp_path / "logs")
    ranks = [json.loads((tmp_path / f"timings-{rank}.json").read_text()) for rank in (0, 1)]
    fractions = []
    for number in range(SAVES):
        # A step is over when the slower rank is, and so is a checkpoint.
        blocked, write = (max(rank["timings"][number][part] for rank in ranks) for part in (0, 1))
        fractions.append(blocked / write)
        assert write > 0.5, ranks
        print(
            f"the step waited {1000 * blocked:.0f} ms for a checkpoint that took {write:.2f} s to "
            f"write: {100 * blocked / write:.1f} %"
        )
    quiet, during_saves = ranks[0]["quiet"], ranks[0]["during_saves"]
    print(f"a step took {quiet:.3f} s, during a save {during_saves:.3f} s")
    assert all(fraction < 0.05 for fraction in fractions), ranks


def step_before_staging(job: Path) -> None:
    """Take a step while the copy of the weights before it has not started."""
    rank = Rank(job, 64)
    rank.step(1)
    before = rank.weights()
    gate = threading.Event()
    rank.saver._thread.submit(gate.wait, 60)
    rank.saver.save(TrainerState(1))
    threading.Timer(0.3, gate.set).start()
    rank.step(2)
    assert not torch.equal(rank.weights(), before)
    rank.saver.close()
    later = Rank(job, 64, attempt=2)
    assert later.resume().step == 1
    assert torch.equal(later.weights(), before)


def test_weights_do_not_change_before_they_are_copied(tmp_path: Path) -> None:
    pool.run(in_process_group, step_before_staging, tmp_path, world=2, folder=tmp_path / "logs")


def close_saver(job: Path) -> None:
    rank = Rank(job, 64)
    rank.saver.save(TrainerState(1))
    buffers = [weakref.ref(values) for values in rank.saver._staging_buffer.result().values()]
    assert buffers
    rank.saver.close()
    assert not any(buffer() is not None for buffer in buffers)


def test_the_staging_buffer_is_freed_after_the_last_checkpoint(tmp_path: Path) -> None:
    pool.run(in_process_group, close_saver, tmp_path, world=2, folder=tmp_path / "logs")


def keep_last_and_best(job: Path) -> None:
    rank = Rank(job, 64, keepLast=2)
    losses = {2: 3.0, 4: 1.0, 6: 2.0}
    at = {}
    for step in range(1, 13):
        rank.step(step)
        at[step] = rank.weights()
        rank.counter.saved = {"count": step, "tensor": torch.tensor([step, 0.5])}
        if step % 2 == 0:
            eval_loss = losses.get(step)
            rank.saver.save(TrainerState(step, 0.25 * step, eval_loss), is_best=step in (2, 4))
            rank.counter.saved["tensor"][1] = 99.0
    rank.saver.close()
    if dist.get_rank() == 0:
        assert steps_of(job) == [4, 10, 12]

    later = Rank(job, 64, attempt=2)
    assert later.resume() == TrainerState(12, 3.0, None)
    assert torch.equal(later.weights(), at[12])
    assert later.counter.saved["count"] == 12
    assert later.counter.saved["tensor"].tolist() == [12, 0.5]
    best = restore.restore_best(job, 2, later.strategy, FINGERPRINT)
    assert best == TrainerState(4, 1.0, 1.0)
    assert torch.equal(later.weights(), at[4])
    later.saver.close()

    newest = job / "checkpoints" / "1" / "step-00000012"
    if dist.get_rank() == 0:
        corrupt(newest / "rank-00000.safetensors")
        (job / "checkpoints" / "1" / ".step-00000014.partial").mkdir()
        (job / "checkpoints" / "1" / "step-00000014").mkdir()
    collectives.barrier()
    third = Rank(job, 64, attempt=3)
    assert third.resume().step == 10
    assert torch.equal(third.weights(), at[10])
    third.saver.close()
    if dist.get_rank() == 0:
        left = {path.name for path in (job / "checkpoints" / "1").iterdir()}
        assert left == {"step-00000004", "step-00000010", "step-00000012"}


def test_the_newest_and_the_best_are_kept_and_corrupt_ones_are_skipped(tmp_path: Path) -> None:
    pool.run(in_process_group, keep_last_and_best, tmp_path, world=2, folder=tmp_path / "logs")


def corrupt(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")


def resume_before_corrupt(job: Path) -> None:
    """The newest checkpoint is corrupt, so the next attempt starts at an earlier step."""
    rank = Rank(job, 64, keepLast=1)
    rank.step(1)
    rank.saver.save(TrainerState(20))
    rank.saver.close()
    corrupt(job / "checkpoints" / "1" / "step-00000020" / "rank-00000.safetensors")
    later = Rank(job, 64, attempt=2, keepLast=1)
    assert later.resume().step == 0
    later.step(2)
    later.saver.save(TrainerState(10))
    later.saver.close()
    third = Rank(job, 64, attempt=3, keepLast=1)
    assert third.resume().step == 10
    third.saver.close()


def test_a_checkpoint_saved_after_a_corrupt_one_is_kept_although_its_step_is_lower(
    tmp_path: Path,
) -> None:
    pool.run(in_process_group, resume_before_corrupt, tmp_path, world=1, folder=tmp_path / "logs")


def save_twice(job: Path) -> None:
    """Save the checkpoints of steps 1 and 2 in a first attempt."""
    rank = Rank(job, 64, keepLast=2)
    for step in (1, 2):
        rank.step(step)
        rank.saver.save(TrainerState(step))
        rank.saver.wait_until_saved()
    rank.saver.close()


def fail_to_read_a_shard(job: Path) -> None:
    """Only the rank that reads the file gets the error of a bad block."""
    save_twice(job)
    readable, bad = checkpoint_folder.sha256_file, {"step-00000002"}

    def read(path: Path) -> str:
        if path.parent.name in bad and path.name == "rank-00001.safetensors":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return readable(path)

    checkpoint_folder.sha256_file = read
    later = Rank(job, 64, attempt=2)
    assert later.resume().step == 1
    # No other checkpoint is left: the volume may work again for the next attempt.
    bad.add("step-00000001")
    with pytest.raises(RetryableError) as caught:
        later.resume()
    assert caught.value.failure.reason == "VolumeUnavailable"
    later.saver.close()


def test_an_unreadable_file_skips_a_checkpoint_if_there_is_an_older_one(
    tmp_path: Path,
) -> None:
    pool.run(in_process_group, fail_to_read_a_shard, tmp_path, world=2, folder=tmp_path / "logs")


def fail_to_read_markers(job: Path) -> None:
    save_twice(job)
    readable, bad = Path.read_bytes, {"step-00000002"}

    def read(path: Path) -> bytes:
        if path.parent.name in bad and path.name == MARKER:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return readable(path)

    setattr(Path, "read_bytes", read)  # noqa: B010
    later = Rank(job, 64, attempt=2, keepLast=2)
    assert later.resume().step == 1
    bad.add("step-00000001")
    with pytest.raises(RetryableError) as caught:
        later.resume()
    assert caught.value.failure.reason == "VolumeUnavailable"
    later.step(3)
    later.saver.save(TrainerState(3))
    later.saver.close()
    assert steps_of(job) == [2, 3]


def test_an_unreadable_marker_skips_a_checkpoint_if_there_is_an_older_one(
    tmp_path: Path,
) -> None:
    pool.run(in_process_group, fail_to_read_markers, tmp_path, world=1, folder=tmp_path / "logs")


def write_marker_only(job: Path, attempt: int, step: int, **marker: Any) -> Path:
    """Write a checkpoint that has only a marker."""
    folder = job / "checkpoints" / str(attempt) / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / MARKER).write_text(json.dumps(marker))
    return folder


def test_an_unlistable_checkpoint_folder_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starting over would lose the checkpoints."""
    folder = write_marker_only(tmp_path, 1, 10).parent
    assert len(checkpoint_folder.list_checkpoints(tmp_path, 2)) == 1

    def denied(call: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(path: Any) -> Any:
            if Path(path) == folder:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return call(path)

        return refuse

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, denied(getattr(os, name)))
    with pytest.raises(PermissionError):
        checkpoint_folder.list_checkpoints(tmp_path, 2)


def test_the_best_checkpoint_of_the_newest_attempt_is_kept(tmp_path: Path) -> None:
    """It resumed before the best step of the older attempt, so that one could not be restored,
    regardless of its loss."""
    write_marker_only(tmp_path, 1, 10, best=True, eval_loss=1.0)
    good = write_marker_only(tmp_path, 2, 10, best=True, eval_loss=1.1)
    write_marker_only(tmp_path, 2, 20, best=False, eval_loss=2.0)
    newest = write_marker_only(tmp_path, 2, 30, best=False, eval_loss=2.0)
    attempt = Attempt(tmp_path, 2)
    attempt.claim()
    retention.prune_checkpoints(attempt, keep_last=1)
    assert sorted(tmp_path.glob("checkpoints/*/*")) == [good, newest]


def add_other_folders(job: Path) -> None:
    rank = Rank(job, 64)
    rank.step(1)
    rank.saver.save(TrainerState(1))
    rank.saver.wait_until_saved()
    checkpoints = job / "checkpoints"
    for name in ("old", ".snapshot", "²"):
        shutil.copytree(checkpoints / "1", checkpoints / name)
    shutil.copytree(checkpoints / "1" / "step-00000001", checkpoints / "1" / "step-2 (copy)")
    odd = checkpoints / "1" / "step-00000002"
    odd.mkdir()
    (odd / MARKER).write_text("[]")
    (checkpoints / "old" / "step-00000001" / MARKER).unlink()
    rank.saver.save(TrainerState(3))
    rank.saver.close()
    later = Rank(job, 64, attempt=2)
    assert later.resume().step == 3
    later.saver.close()
    assert (checkpoints / "old" / "step-00000001").is_dir()


def test_other_folders_next_to_checkpoints_are_left_alone(tmp_path: Path) -> None:
    pool.run(in_process_group, add_other_folders, tmp_path, world=1, folder=tmp_path / "logs")


def fail_in_the_thread(job: Path) -> None:
    rank = Rank(job, 64)
    if dist.get_rank() == 1:
        (job / ".train-1" / "step-00000001").write_text("not a folder")
    collectives.barrier()
    rank.step(1)
    rank.saver.save(TrainerState(1))

    def train_until_failure() -> None:
        for step in range(2, 10_000):
            rank.step(step)

    with pytest.raises(RetryableError) as caught:
        train_until_failure()
    assert "FileExistsError" in caught.value.failure.message
    assert steps_of(job) == []


def test_an_error_in_the_thread_of_one_rank_fails_a_step_of_every_rank(tmp_path: Path) -> None:
    pool.run(in_process_group, fail_in_the_thread, tmp_path, world=2, folder=tmp_path / "logs")


def save_after_replacement(job: Path) -> None:
    rank = Rank(job, 64)
    rank.step(1)
    rank.saver.save(TrainerState(1))
    rank.saver.wait_until_saved()
    assert rank.saver.poll()["last_checkpoint_step"] == 1
    if dist.get_rank() == 0:
        Attempt(job, 2).claim()
    collectives.barrier()
    rank.step(2)
    rank.saver.save(TrainerState(2))
    with pytest.raises(RetryableError) as caught:
        rank.saver.wait_until_saved()
    assert caught.value.failure.reason == "Fenced"
    assert steps_of(job) == [1]


def test_an_attempt_that_was_replaced_publishes_nothing(tmp_path: Path) -> None:
    pool.run(in_process_group, save_after_replacement, tmp_path, world=2, folder=tmp_path / "logs")


def check_interval(job: Path) -> None:
    rank = Rank(job, 64, intervalMinutes=1)
    assert not rank.saver.is_due()
    rank.saver._saved_at -= 60
    assert rank.saver.is_due()
    rank.saver.save(TrainerState(1))
    assert not rank.saver.is_due()
    rank.saver.close()


def test_a_checkpoint_is_due_after_the_interval(tmp_path: Path) -> None:
    pool.run(in_process_group, check_interval, tmp_path, world=1, folder=tmp_path / "logs")


def test_an_attempt_starts_only_once(tmp_path: Path) -> None:
    Attempt(tmp_path, 1).claim()
    with pytest.raises(RetryableError) as caught:
        Attempt(tmp_path, 1).claim()
    assert caught.value.failure.reason == "AttemptAlreadyClaimed"


def save_despite_unremovable(job: Path) -> None:
    """An older checkpoint is on another file system, from which no rename is possible."""
    rank = Rank(job, 64, attempt=2, keep_last=1)
    assert restore.restore_latest(job, 2, rank.strategy, {"run": "another"}).step == 0
    for step in (1, 2):
        rank.step(step)
        rank.saver.save(TrainerState(step))
        rank.saver.wait_until_saved()


def test_an_older_checkpoint_that_cannot_be_removed_does_not_end_the_run(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        old = Path(elsewhere) / "step-00000000"
        old.mkdir()
        (old / MARKER).write_text(json.dumps({"files": {}, "fingerprint": FINGERPRINT}))
        (Path(elsewhere) / "step-00000009").mkdir()
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "1").symlink_to(elsewhere)
        assert old.stat().st_dev != tmp_path.stat().st_dev
        pool.run(
            in_process_group, save_despite_unremovable, tmp_path, world=1, folder=tmp_path / "logs"
        )
        assert steps_of(tmp_path) == [0, 2]


def test_replicated_tensors_are_written_once_in_shards_of_equal_size() -> None:
    sizes = {"weight": 64, "exp_avg": 64, "exp_avg_sq": 64, "step": 1}
    state = {
        f"{what}/{name}": Fragment(torch.zeros(size))
        for name in "abcd"
        for what, size in sizes.items()
    }
    shards = [sharded_format.own_shard(state, rank, 3) for rank in range(3)]
    assert sorted(name for shard in shards for name in shard) == sorted(f"{n}@0" for n in state)
    sizes_by_rank = [sum(values.numel() for values in shard.values()) for shard in shards]
    assert max(sizes_by_rank) - min(sizes_by_rank) <= 4


def test_missing_elements_are_an_error(tmp_path: Path) -> None:
    sharded_format.write_shard(tmp_path, 0, {"weight/a@0": torch.arange(4.0)})
    held = {"weight/a": Fragment(torch.zeros(3), start=1)}
    sharded_format.read_shards(tmp_path, held)
    assert held["weight/a"].values.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="3 of 4 elements"):
        sharded_format.read_shards(tmp_path, {"weight/a": Fragment(torch.zeros(4), start=1)})
