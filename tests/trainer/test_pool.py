"""The fork server that the trainer's tests run their ranks in."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.trainer import pool


def meet(answer: str) -> None:
    import torch
    from torch import distributed as dist

    from tests.trainer import pool_imports

    assert len(pool_imports.THREADS) == 1, pool_imports.THREADS
    dist.init_process_group("gloo")
    total = torch.ones(1) * (dist.get_rank() + 1)
    dist.all_reduce(total)
    print(answer, dist.get_rank(), dist.get_world_size(), float(total), flush=True)
    dist.destroy_process_group()


def hang(folder: Path) -> None:
    (folder / f"up-{os.environ['RANK']}").touch()
    time.sleep(600)


def fail() -> None:
    raise SystemExit(int(os.environ["RANK"]) * 7)


def test_ranks_meet_and_a_second_case_costs_little(tmp_path: Path) -> None:
    pool.run(meet, "first", world=2, folder=tmp_path / "first")
    started = time.monotonic()
    text = pool.run(meet, "second", world=4, folder=tmp_path / "second")
    seconds = time.monotonic() - started
    assert "second 3 4 10.0" in text
    print(f"a case of four ranks took {seconds:.2f} s")


def test_exit_codes_are_listed_by_rank(tmp_path: Path) -> None:
    assert pool.start(fail, world=2, folder=tmp_path).wait() == [0, 7]


def test_single_ranks_can_be_killed(tmp_path: Path) -> None:
    ranks = pool.start(hang, tmp_path, world=2, folder=tmp_path)
    while not (tmp_path / "up-1").exists():
        time.sleep(0.01)
    ranks.kill(1)
    ranks.kill(0, signal.SIGTERM)
    assert ranks.wait() == [-signal.SIGTERM, -signal.SIGKILL]


def test_a_case_that_hangs_is_ended_at_its_deadline(tmp_path: Path) -> None:
    ranks = pool.start(hang, tmp_path, world=1, folder=tmp_path)
    with pytest.raises(AssertionError, match="still ran"):
        ranks.wait(deadline=0.5)
    assert ranks.running() == []
