"""Checkpoints beside training: what a step waits for, what is kept, and what goes wrong.

The ranks here train a plain network under the real engines; what a checkpoint holds and how it is
resumed under every strategy is shown by test_resume and test_strategies.
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
from finetune_trainer.checkpointing import restore, sharded_format
from finetune_trainer.checkpointing.restore import MARKER, Position
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
    """A part that remembers a number and a tensor."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {"count": 0, "tensor": torch.zeros(2)}

    def state(self) -> Any:
        return self.told

    def restore(self, state: Any) -> None:
        self.told = state


SAVES = 5


class Rank:
    """One rank with an engine around a network of `width` x 64 weights."""

    def __init__(self, job: Path, width: int, attempt: int = 1, **settings: Any) -> None:
        torch.manual_seed(0)
        spread = StrategyConfig(
            strategy="DDP",
            method=Method(type="Full"),
            training=Training(precision="fp32"),
            device=torch.device("cpu"),
            learning_rate=1e-2,
            micro_batch_size=1,
            offload=False,
            autocast=False,
        )
        self.engine = DDPStrategy(torch.nn.Sequential(torch.nn.Embedding(width, 64)), spread)
        self.job, self.attempt, self.width = job, attempt, width
        self.part = Counter()
        if dist.get_rank() == 0:
            Attempt(job, attempt).claim()
        collectives.barrier()
        keep = Checkpointing(**settings)
        parts = {"counter": self.part}
        self.saver = Saver(job, attempt, self.engine, FINGERPRINT, keep, parts)

    def step(self, step: int) -> float:
        """Train a step; its seconds."""
        started = time.monotonic()
        torch.manual_seed(step)
        with self.engine.accumulate(last=True):
            rows = torch.randint(self.width, (4096,))
            self.engine.backward(self.engine.model(rows).pow(2).sum())
        self.saver.settle()
        self.engine.step(1e-2)
        self.saver.look()
        return time.monotonic() - started

    def weights(self) -> torch.Tensor:
        """A copy of all weights."""
        return torch.cat([weight.flatten().clone() for _, weight in self.engine.full_weights()])

    def resume(self) -> Position:
        """Restore the newest usable checkpoint."""
        parts = {"counter": self.part}
        return restore.resume(self.job, self.attempt, self.engine, FINGERPRINT, parts)


def alone(work: Callable[..., None], *arguments: Any) -> None:
    """Run in a process group, and leave it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    work(*arguments)
    collectives.barrier()
    dist.destroy_process_group()


def steps_of(job: Path) -> list[int]:
    return sorted(int(path.parent.name[5:]) for path in (job / "checkpoints").glob(f"*/*/{MARKER}"))


def large(job: Path) -> None:
    """Save 960 MB five times while training goes on, and note what each save cost."""
    rank = Rank(job, 1_250_000, keepLast=1)
    quiet = [rank.step(step) for step in range(1, 4)]
    beside = []
    for step in range(4, 100):
        if not rank.saver.busy and len(rank.saver.costs) < SAVES:
            rank.saver.save(Position(step))
        beside.append(rank.step(step))
        if len(rank.saver.costs) == SAVES and not rank.saver.busy:
            break
    rank.saver.close()
    costs = [(cost.waited, cost.wrote) for cost in rank.saver.costs]
    told = {"costs": costs, "quiet": sorted(quiet)[1], "beside": sorted(beside)[len(beside) // 2]}
    (job / f"told-{dist.get_rank()}.json").write_text(json.dumps(told))


def test_a_step_waits_less_than_a_twentieth_of_the_writing(tmp_path: Path) -> None:
    pool.run(alone, large, tmp_path, world=2, folder=tmp_path / "logs")
    told = [json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in (0, 1)]
    shares = []
    for number in range(SAVES):
        # A step is over when the slower rank is, and so is a checkpoint.
        waited, wrote = (max(rank["costs"][number][part] for rank in told) for part in (0, 1))
        shares.append(waited / wrote)
        assert wrote > 0.5, told
        print(
            f"the step waited {1000 * waited:.0f} ms for a checkpoint that took {wrote:.2f} s to "
            f"write: {100 * waited / wrote:.1f} %"
        )
    print(f"a step took {told[0]['quiet']:.3f} s, beside a save {told[0]['beside']:.3f} s")
    assert all(share < 0.05 for share in shares), told


def slow(job: Path) -> None:
    """Take a step while the copy of the state before it has not begun."""
    rank = Rank(job, 64)
    rank.step(1)
    before = rank.weights()
    gate = threading.Event()
    rank.saver._thread.submit(gate.wait, 60)
    rank.saver.save(Position(1))
    threading.Timer(0.3, gate.set).start()
    rank.step(2)
    assert not torch.equal(rank.weights(), before)
    rank.saver.close()
    later = Rank(job, 64, attempt=2)
    assert later.resume().step == 1
    assert torch.equal(later.weights(), before)


def test_weights_do_not_change_before_they_are_copied(tmp_path: Path) -> None:
    pool.run(alone, slow, tmp_path, world=2, folder=tmp_path / "logs")


def closed(job: Path) -> None:
    rank = Rank(job, 64)
    rank.saver.save(Position(1))
    copies = [weakref.ref(copy) for copy in rank.saver._room.result().values()]
    assert copies
    rank.saver.close()
    assert not any(copy() is not None for copy in copies)


def test_what_follows_the_last_checkpoint_has_its_memory_again(tmp_path: Path) -> None:
    pool.run(alone, closed, tmp_path, world=2, folder=tmp_path / "logs")


def kept(job: Path) -> None:
    rank = Rank(job, 64, keepLast=2)
    losses = {2: 3.0, 4: 1.0, 6: 2.0}
    at = {}
    for step in range(1, 13):
        rank.step(step)
        at[step] = rank.weights()
        rank.part.told = {"count": step, "tensor": torch.tensor([step, 0.5])}
        if step % 2 == 0:
            eval_loss = losses.get(step)
            rank.saver.save(Position(step, 0.25 * step, eval_loss), best=step in (2, 4))
            rank.part.told["tensor"][1] = 99.0
    rank.saver.close()
    if dist.get_rank() == 0:
        assert steps_of(job) == [4, 10, 12]

    later = Rank(job, 64, attempt=2)
    assert later.resume() == Position(12, 3.0, None)
    assert torch.equal(later.weights(), at[12])
    assert later.part.told["count"] == 12
    assert later.part.told["tensor"].tolist() == [12, 0.5]
    best = restore.restore_best(job, 2, later.engine, FINGERPRINT)
    assert best == Position(4, 1.0, 1.0)
    assert torch.equal(later.weights(), at[4])
    later.saver.close()

    newest = job / "checkpoints" / "1" / "step-00000012"
    if dist.get_rank() == 0:
        damage(newest / "rank-00000.safetensors")
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


def test_the_newest_and_the_best_are_kept_and_broken_ones_passed_over(tmp_path: Path) -> None:
    pool.run(alone, kept, tmp_path, world=2, folder=tmp_path / "logs")


def damage(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")


def shadowed(job: Path) -> None:
    """The newest checkpoint is of no use, so the next attempt begins further back."""
    rank = Rank(job, 64, keepLast=1)
    rank.step(1)
    rank.saver.save(Position(20))
    rank.saver.close()
    damage(job / "checkpoints" / "1" / "step-00000020" / "rank-00000.safetensors")
    later = Rank(job, 64, attempt=2, keepLast=1)
    assert later.resume().step == 0
    later.step(2)
    later.saver.save(Position(10))
    later.saver.close()
    third = Rank(job, 64, attempt=3, keepLast=1)
    assert third.resume().step == 10
    third.saver.close()


def test_what_follows_a_broken_checkpoint_is_kept_although_its_step_is_lower(
    tmp_path: Path,
) -> None:
    pool.run(alone, shadowed, tmp_path, world=1, folder=tmp_path / "logs")


def save_twice(job: Path) -> None:
    """A first attempt leaves the checkpoints of steps 1 and 2."""
    rank = Rank(job, 64, keepLast=2)
    for step in (1, 2):
        rank.step(step)
        rank.saver.save(Position(step))
        rank.saver.finish()
    rank.saver.close()


def unreadable(job: Path) -> None:
    """A bad block is met by the one rank that reads the file, and not by the others."""
    save_twice(job)
    readable, bad = restore.sha256_of, {"step-00000002"}

    def read(path: Path) -> str:
        if path.parent.name in bad and path.name == "rank-00001.safetensors":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return readable(path)

    restore.sha256_of = read
    later = Rank(job, 64, attempt=2)
    assert later.resume().step == 1
    # Where nothing else is left, the volume may be well again for the next attempt.
    bad.add("step-00000001")
    with pytest.raises(RetryableError) as caught:
        later.resume()
    assert caught.value.failure.reason == "VolumeUnavailable"
    later.saver.close()


def test_a_checkpoint_with_an_unreadable_file_is_passed_over_where_there_is_an_older_one(
    tmp_path: Path,
) -> None:
    pool.run(alone, unreadable, tmp_path, world=2, folder=tmp_path / "logs")


def bad_markers(job: Path) -> None:
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
    later.saver.save(Position(3))
    later.saver.close()
    assert steps_of(job) == [2, 3]


def test_a_checkpoint_with_an_unreadable_marker_is_passed_over_likewise(tmp_path: Path) -> None:
    pool.run(alone, bad_markers, tmp_path, world=1, folder=tmp_path / "logs")


def marked(job: Path, attempt: int, step: int, **marker: Any) -> Path:
    """A checkpoint of nothing but its marker."""
    folder = job / "checkpoints" / str(attempt) / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / MARKER).write_text(json.dumps(marker))
    return folder


def test_checkpoints_that_cannot_be_listed_do_not_pass_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To begin anew would lose them."""
    folder = marked(tmp_path, 1, 10).parent
    assert len(restore.candidates(tmp_path, 2)) == 1

    def denied(call: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(path: Any) -> Any:
            if Path(path) == folder:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return call(path)

        return refuse

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, denied(getattr(os, name)))
    with pytest.raises(PermissionError):
        restore.candidates(tmp_path, 2)


def test_the_best_that_is_kept_is_one_that_the_newest_attempt_goes_on_from(tmp_path: Path) -> None:
    """It began before the other one, so that could not be used, whatever its loss."""
    marked(tmp_path, 1, 10, best=True, eval_loss=1.0)
    good = marked(tmp_path, 2, 10, best=True, eval_loss=1.1)
    marked(tmp_path, 2, 20, best=False, eval_loss=2.0)
    newest = marked(tmp_path, 2, 30, best=False, eval_loss=2.0)
    attempt = Attempt(tmp_path, 2)
    attempt.claim()
    restore.prune(attempt, keep_last=1)
    assert sorted(tmp_path.glob("checkpoints/*/*")) == [good, newest]


def littered(job: Path) -> None:
    rank = Rank(job, 64)
    rank.step(1)
    rank.saver.save(Position(1))
    rank.saver.finish()
    checkpoints = job / "checkpoints"
    for name in ("old", ".snapshot", "²"):
        shutil.copytree(checkpoints / "1", checkpoints / name)
    shutil.copytree(checkpoints / "1" / "step-00000001", checkpoints / "1" / "step-2 (copy)")
    odd = checkpoints / "1" / "step-00000002"
    odd.mkdir()
    (odd / MARKER).write_text("[]")
    (checkpoints / "old" / "step-00000001" / MARKER).unlink()
    rank.saver.save(Position(3))
    rank.saver.close()
    later = Rank(job, 64, attempt=2)
    assert later.resume().step == 3
    later.saver.close()
    assert (checkpoints / "old" / "step-00000001").is_dir()


def test_folders_that_somebody_else_put_beside_checkpoints_are_left_alone(tmp_path: Path) -> None:
    pool.run(alone, littered, tmp_path, world=1, folder=tmp_path / "logs")


def broken(job: Path) -> None:
    rank = Rank(job, 64)
    if dist.get_rank() == 1:
        (job / ".train-1" / "step-00000001").write_text("no folder")
    collectives.barrier()
    rank.step(1)
    rank.saver.save(Position(1))

    def train_on() -> None:
        for step in range(2, 10_000):
            rank.step(step)

    with pytest.raises(RetryableError) as caught:
        train_on()
    assert "FileExistsError" in caught.value.failure.message
    assert steps_of(job) == []


def test_what_fails_in_the_thread_fails_a_step_of_every_rank(tmp_path: Path) -> None:
    pool.run(alone, broken, tmp_path, world=2, folder=tmp_path / "logs")


def fenced(job: Path) -> None:
    rank = Rank(job, 64)
    rank.step(1)
    rank.saver.save(Position(1))
    rank.saver.finish()
    assert rank.saver.look()["last_checkpoint_step"] == 1
    if dist.get_rank() == 0:
        Attempt(job, 2).claim()
    collectives.barrier()
    rank.step(2)
    rank.saver.save(Position(2))
    with pytest.raises(RetryableError) as caught:
        rank.saver.finish()
    assert caught.value.failure.reason == "Fenced"
    assert steps_of(job) == [1]


def test_an_attempt_that_was_replaced_publishes_nothing(tmp_path: Path) -> None:
    pool.run(alone, fenced, tmp_path, world=2, folder=tmp_path / "logs")


def timed(job: Path) -> None:
    rank = Rank(job, 64, intervalMinutes=1)
    assert not rank.saver.due()
    rank.saver._saved_at -= 60
    assert rank.saver.due()
    rank.saver.save(Position(1))
    assert not rank.saver.due()
    rank.saver.close()


def test_a_checkpoint_is_due_when_the_last_one_is_old(tmp_path: Path) -> None:
    pool.run(alone, timed, tmp_path, world=1, folder=tmp_path / "logs")


def test_an_attempt_is_claimed_once(tmp_path: Path) -> None:
    Attempt(tmp_path, 1).claim()
    with pytest.raises(RetryableError) as caught:
        Attempt(tmp_path, 1).claim()
    assert caught.value.failure.reason == "AttemptAlreadyClaimed"


def crowded(job: Path) -> None:
    """An older checkpoint lies where nothing can be renamed to: on another file system."""
    rank = Rank(job, 64, attempt=2, keep_last=1)
    assert restore.resume(job, 2, rank.engine, {"run": "another"}).step == 0
    for step in (1, 2):
        rank.step(step)
        rank.saver.save(Position(step))
        rank.saver.finish()


def test_an_older_checkpoint_that_cannot_be_removed_ends_nothing(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        old = Path(elsewhere) / "step-00000000"
        old.mkdir()
        (old / MARKER).write_text(json.dumps({"files": {}, "fingerprint": FINGERPRINT}))
        (Path(elsewhere) / "step-00000009").mkdir()
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "1").symlink_to(elsewhere)
        assert old.stat().st_dev != tmp_path.stat().st_dev
        pool.run(alone, crowded, tmp_path, world=1, folder=tmp_path / "logs")
        assert steps_of(tmp_path) == [0, 2]


def test_what_all_ranks_hold_is_written_once_and_in_equal_parts() -> None:
    sizes = {"weight": 64, "exp_avg": 64, "exp_avg_sq": 64, "step": 1}
    state = {
        f"{what}/{name}": Fragment(torch.zeros(size))
        for name in "abcd"
        for what, size in sizes.items()
    }
    parts = [sharded_format.own_part(state, rank, 3) for rank in range(3)]
    assert sorted(name for part in parts for name in part) == sorted(f"{n}@0" for n in state)
    held = [sum(values.numel() for values in part.values()) for part in parts]
    assert max(held) - min(held) <= 4


def test_missing_elements_are_never_read_as_something_else(tmp_path: Path) -> None:
    sharded_format.write(tmp_path, 0, {"weight/a@0": torch.arange(4.0)})
    whole = {"weight/a": Fragment(torch.zeros(3), start=1)}
    sharded_format.read(tmp_path, whole)
    assert whole["weight/a"].values.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="3 of 4 elements"):
        sharded_format.read(tmp_path, {"weight/a": Fragment(torch.zeros(4), start=1)})
