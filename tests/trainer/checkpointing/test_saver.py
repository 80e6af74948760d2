"""Checkpoints saved alongside training: what a step waits for, and what goes wrong.

test_restore and test_strategies show what a checkpoint holds and how it is restored under every
strategy.
"""

from __future__ import annotations

import json
import threading
import weakref
from pathlib import Path

import pytest
import torch
from finetune_trainer.checkpointing.restore import TrainerState
from finetune_trainer.distributed import collectives
from finetune_trainer.runtime.errors import RetryableError
from torch import distributed as dist

from tests.trainer import pool
from tests.trainer.checkpoint_ranks import Rank, in_process_group, steps_of

pytestmark = pytest.mark.filterwarnings("default")
SAVES = 5


def save_large_checkpoints(job: Path) -> None:
    """Save 960 MB five times while training continues, and write how long each save took."""
    rank = Rank(job, 1_250_000, keepLast=1)
    quiet = [rank.step(step) for step in range(1, 4)]
    during_saves = []
    started_step = None
    for step in range(4, 100):
        if rank.progress.get("last_checkpoint_step") == started_step:
            if len(rank.saver.timings) == SAVES:
                break
            rank.saver.save(TrainerState(step))
            started_step = step
        during_saves.append(rank.step(step))
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
