"""A rank that stops is named, while the others wait and in the error that they end with."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetune_api.protocol import COLLECTIVE_TIMEOUT_ENV, ExitCode
from finetune_trainer.distributed.heartbeat import Beat, find_stalled_ranks, locate_thread

from tests.trainer.jobs import make_run, write_data
from tests.trainer.test_train import Stage
from tests.trainer.tiny import tiny_model

LIMIT = 15


def beat(rank: int, count: int, is_waiting: bool = True) -> Beat:
    return Beat(rank, f"host-{rank}", count, 7, is_waiting, "worker.py:accumulate")


def test_a_rank_whose_beats_ended_is_stalled_wherever_its_main_thread_is() -> None:
    before = [beat(0, 10), beat(1, 10), beat(2, 10)]
    assert find_stalled_ranks(
        before, [beat(0, 15), beat(1, 10), beat(2, 15, is_waiting=False)]
    ) == [beat(1, 10)]


def test_a_rank_that_beats_but_does_not_wait_is_the_stalled_one() -> None:
    before = [beat(0, 10), beat(1, 10)]
    assert find_stalled_ranks(before, [beat(0, 15), beat(1, 15, is_waiting=False)]) == [
        beat(1, 15, is_waiting=False)
    ]


@pytest.mark.parametrize("is_waiting", [True, False])
def test_no_rank_is_blamed_where_all_do_the_same(is_waiting: bool) -> None:
    assert (
        find_stalled_ranks(
            [beat(0, 1), beat(1, 1)], [beat(0, 2, is_waiting), beat(1, 2, is_waiting)]
        )
        == []
    )


def test_a_thread_is_located_in_the_innermost_function_of_the_trainer() -> None:
    """This function is not the trainer's, but one of the trainer's calls it."""
    from finetune_trainer.distributed import collectives

    entered, go = threading.Event(), threading.Event()

    def inside() -> None:
        entered.set()
        go.wait(30)

    code = compile("def call(f): f()", collectives.__file__, "exec")
    scope: dict[str, Any] = {}
    exec(code, scope)
    thread = threading.Thread(target=scope["call"], args=(inside,))
    thread.start()
    assert entered.wait(30)
    assert locate_thread(sys._current_frames()[thread.ident or 0]) == (
        False,
        "distributed/collectives.py:call",
    )
    go.set()
    thread.join()


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("the condition never became true")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_is_named_by_progress_metrics_and_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    monkeypatch.setenv(COLLECTIVE_TIMEOUT_ENV, str(LIMIT))
    model = tiny_model(tmp_path / "models" / "tiny")
    write_data(tmp_path / "job" / "data", model)
    stage = Stage(tmp_path / "a", make_run(tmp_path, model, strategy="DDP", steps=100000))
    stage.wait_for(lambda p: p.step >= 1)
    pids = [r["pid"] for r in stage.rank_files()]
    os.kill(pids[rank], signal.SIGSTOP)
    try:
        progress = stage.wait_for(lambda p: bool(p.stalled))
        assert [r.rank for r in progress.stalled] == [rank]
        assert progress.stalled[0].host
        metrics = stage.get("/metrics")
        assert f'rank="{rank}"}} 1.0' in next(
            line for line in metrics.splitlines() if line.startswith("finetune_train_rank_stalled{")
        )
        code, result = stage.end()
    finally:
        if stage.process.poll() is None:
            os.kill(pids[rank], signal.SIGCONT)
    assert code == ExitCode.RETRYABLE, stage.text()[-3000:]
    assert result.failure is not None
    assert result.failure.reason == "RankStalled"
    assert f"rank {rank} on host" in result.failure.message
