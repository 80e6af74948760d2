"""Ranks that start in milliseconds: one process imports the libraries and forks all ranks.

Importing torch, transformers, PEFT and DeepSpeed takes far longer than training a tiny model.
Python's fork server does it once for the whole test run. A rank is a fork of it, but otherwise as
torchrun would start it: a process with RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, a
log of its own, and an exit code. A test may send signals to single ranks.

    ranks = pool.start(drive, cases, world=2, folder=tmp_path / "first")
    os.kill(ranks.pids[1], signal.SIGKILL)
    assert ranks.wait() == [1, -signal.SIGKILL], ranks.text()

    pool.run(drive, cases, world=4, folder=tmp_path / "second")  # all ranks must end with 0

The function must be defined at the top level of a module; its arguments must be picklable.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.trainer.jobs import free_port

PRELOAD = ["tests.trainer.pool_imports", "pytest"]
DEADLINE = 240.0
"""Seconds that a case may take, the import by the first one included."""


class Ranks:
    """The processes of one case."""

    def __init__(self, processes: list[BaseProcess], logs: list[Path]) -> None:
        self._processes = processes
        self._logs = logs

    @property
    def pids(self) -> list[int]:
        """Process ids by rank."""
        return [process.pid or 0 for process in self._processes]

    def kill(self, rank: int, signum: int = signal.SIGKILL) -> None:
        """Send a signal to one rank."""
        os.kill(self.pids[rank], signum)

    def running(self) -> list[int]:
        """Ranks that are still running."""
        return [rank for rank, process in enumerate(self._processes) if process.exitcode is None]

    def wait(self, deadline: float = DEADLINE) -> list[int]:
        """Exit codes by rank, negative for signals.

        Raises AssertionError with the logs if ranks still run after `deadline` seconds, and kills
        them.
        """
        end = time.monotonic() + deadline
        left = {process.sentinel for process in self._processes}
        while left and time.monotonic() < end:
            left -= set(wait_for_any(list(left), timeout=max(0.0, end - time.monotonic())))
        if left:
            late = self.running()
            self.kill_all()
            raise AssertionError(f"ranks {late} still ran after {deadline:.0f} s\n{self.text()}")
        codes = []
        for process in self._processes:
            process.join()
            assert process.exitcode is not None
            codes.append(process.exitcode)
        return codes

    def kill_all(self) -> None:
        """Kill the ranks that still run."""
        for process in self._processes:
            process.kill()
            process.join()

    def text(self, rank: int | None = None, last: int = 6000) -> str:
        """The end of one rank's log, or of all of them."""
        logs = self._logs if rank is None else [self._logs[rank]]
        texts = (f"--- {log.name}\n{log.read_text()[-last:]}" for log in logs if log.exists())
        return "\n".join(texts)


def start(
    function: Callable[..., Any],
    *arguments: Any,
    world: int,
    folder: Path,
    environment: dict[str, str] | None = None,
) -> Ranks:
    """Run `function(*arguments)` on `world` ranks; logs go to <folder>/rank-<n>.log."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **(environment or {})}
    processes: list[BaseProcess] = []
    logs = [folder / f"rank-{rank}.log" for rank in range(world)]
    for rank, log in enumerate(logs):
        its = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        variables = {**{name: str(value) for name, value in its.items()}, **shared}
        process = context.Process(
            target=_rank, args=(variables, log, function, arguments), daemon=True
        )
        process.start()
        processes.append(process)
    return Ranks(processes, logs)


def run(
    function: Callable[..., Any],
    *arguments: Any,
    world: int,
    folder: Path,
    environment: dict[str, str] | None = None,
    deadline: float = DEADLINE,
) -> str:
    """Start ranks, wait for them, and return their logs; all of them must exit with 0."""
    ranks = start(function, *arguments, world=world, folder=folder, environment=environment)
    codes = ranks.wait(deadline)
    assert codes == [0] * world, f"exit codes {codes}\n{ranks.text()}"
    return ranks.text()


def _rank(
    variables: dict[str, str], log: Path, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ.update(variables)
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 1
    try:
        function(*arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Without cleanup: no thread of a library may delay the exit.
        os._exit(code)
