"""Which checkpoints are kept: the newest and the best, and one that cannot be removed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from finetune_trainer.checkpointing import restore, retention
from finetune_trainer.checkpointing.checkpoint_folder import MARKER
from finetune_trainer.checkpointing.restore import TrainerState
from finetune_trainer.distributed import collectives
from finetune_trainer.runtime.fencing import Attempt
from torch import distributed as dist

from tests.trainer import pool
from tests.trainer.checkpoint_ranks import (
    FINGERPRINT,
    Rank,
    corrupt,
    in_process_group,
    steps_of,
    write_marker_only,
)

pytestmark = pytest.mark.filterwarnings("default")


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
