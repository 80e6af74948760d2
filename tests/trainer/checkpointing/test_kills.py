"""Runs that are killed or stopped anywhere continue with the losses of an uninterrupted run.

`make kills` runs twenty random kills; the suite runs the first few of them, and a stop of each
rank. FINETUNE_KILLS_SEED sets the seed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time

import pytest
from finetune_trainer.checkpointing.checkpoint_folder import MARKER

from tests.trainer.jobs import losses
from tests.trainer.kills import (
    CHECKPOINT_INTERVAL,
    SIGNALLED,
    STEPS,
    TABLE_HEADER,
    Kill,
    Runs,
    kill_and_resume,
)
from tests.trainer.strategies.test_strategies import dropout_model

COUNT = int(os.environ.get("FINETUNE_KILLS", "3"))
SEED = int(os.environ.get("FINETUNE_KILLS_SEED", str(random.SystemRandom().randrange(10**6))))
GRACE = 30.0
"""Kubernetes' default of terminationGracePeriodSeconds, from SIGTERM to SIGKILL."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("kills")
    return Runs(root, dropout_model(root))


def test_a_run_killed_anywhere_has_the_losses_of_one_that_was_not(runs: Runs) -> None:
    print(f"\nseed {SEED}\n{TABLE_HEADER}")
    results = []
    for index in range(COUNT):
        results.append(kill_and_resume(runs, index, random.Random(SEED + index)))
        print(results[-1].sequence(), flush=True)
    assert all(killed.is_same for killed in results)
    # A kill during a save loses the steps after the checkpoint before it.
    assert all(
        0 <= killed.at - killed.resumed_from <= 2 * CHECKPOINT_INTERVAL for killed in results
    )


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("strategy", ["DDP", "ZeRO3"])
def test_a_stop_of_any_one_rank_loses_no_step(runs: Runs, strategy: str, rank: int) -> None:
    straight, name = f"stop-straight-{strategy}", f"stopped-{strategy}-{rank}"
    if not runs.job(straight).exists():
        assert runs.attempt(straight, 1, strategy=strategy, method="Full")[0] == [0, 0]
    kill = Kill(rank=rank, signum=signal.SIGTERM, step=5)
    codes, text = runs.attempt(name, 1, kill, strategy=strategy, method="Full")
    assert codes == [0, 0], text
    assert time.time() - (runs.job(name) / SIGNALLED).stat().st_mtime < GRACE
    results = [
        json.loads((runs.root / name / "attempt-1" / f"result-0000{rank}.json").read_text())
        for rank in (0, 1)
    ]
    assert [result["finished"] for result in results] == [False, False]
    at = len(losses(runs.job(name), 1))
    assert 5 <= at < STEPS
    assert [result["train"]["steps"] for result in results] == [at, at]
    codes, text = runs.attempt(name, 2, strategy=strategy, method="Full")
    assert codes == [0, 0], text
    together = losses(runs.job(name), 1) + losses(runs.job(name), 2)
    assert together == losses(runs.job(straight))


@pytest.mark.parametrize("strategy", ["ZeRO2", "FSDP"])
def test_a_partial_checkpoint_is_never_restored(runs: Runs, strategy: str) -> None:
    name = f"half-{strategy}"
    kill = Kill(rank=0, signum=signal.SIGKILL, step=3, during_save=True)
    codes, text = runs.attempt(name, 1, kill, strategy=strategy, method="Full")
    assert codes == [-signal.SIGKILL, 1], text
    checkpoints, scratch = runs.job(name) / "checkpoints", runs.job(name) / ".train-1"
    complete = {path.parent.name for path in checkpoints.glob(f"1/*/{MARKER}")}
    partial = {path.name for path in scratch.glob("step-*")}
    assert partial, "the kill came too late"
    codes, text = runs.attempt(name, 2, strategy=strategy, method="Full")
    assert codes == [0, 0], text
    resumed = STEPS - len(losses(runs.job(name), 2))
    assert f"step-{resumed:08d}" in complete
    assert not scratch.exists()
    assert not any((checkpoints / "1" / folder).exists() for folder in partial)
