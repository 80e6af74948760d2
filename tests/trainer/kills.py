"""Attempts whose ranks are killed, or requested to stop, at a chosen point of a real run.

A rank runs the same code as in production. A thread in its process polls the files of the run; when
they show that the point is reached, it sends a signal to the process.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.run_config import RunConfig
from finetune_trainer.runtime.telemetry import RANK_FOLDER_ENV
from finetune_trainer.training import worker

from tests.trainer import pool
from tests.trainer.jobs import losses, make_run, write_data, write_run

STEPS = 12
CHECKPOINT_INTERVAL = 2
"""Steps between checkpoints."""
STRATEGIES = ("DDP", "ZeRO2", "ZeRO3", "FSDP")
METHODS = ("LoRA", "Full")
SIGNALLED = "struck"
"""A file in the job's folder, created when the signal is sent."""


@dataclass(frozen=True)
class Kill:
    """A signal to one rank."""

    rank: int
    signum: int
    step: int = 0
    """Steps that are finished before it."""
    delay: float = 0.0
    """Seconds after that step."""
    during_save: bool = False
    """Instead of at the end of the step: while a checkpoint of a later step is written."""


def run_rank(run: RunConfig, kill: Kill | None) -> None:
    """Run one rank of an attempt; `kill` may be for another rank."""
    if kill and kill.rank == int(os.environ["RANK"]):
        threading.Thread(target=send_signal_at, args=(run, kill), daemon=True).start()
    worker.main()


def send_signal_at(run: RunConfig, kill: Kill) -> None:
    """Wait for the point, then send the signal to this process."""
    job = Path(run.paths.job)
    history = job / "report" / f"train-{run.attempt}.jsonl"
    scratch = job / f".train-{run.attempt}"

    def is_reached() -> bool:
        if kill.during_save:
            return any(int(path.name[5:13]) > kill.step for path in scratch.glob("step-*"))
        return history.exists() and len(history.read_text().splitlines()) >= kill.step

    while not is_reached():
        time.sleep(0.001)
    time.sleep(kill.delay)
    (job / SIGNALLED).touch()
    os.kill(os.getpid(), kill.signum)


class Runs:
    """Attempts of tiny jobs under one folder."""

    def __init__(self, root: Path, model: Path, **training: Any) -> None:
        self.root, self.model = root, model
        self._training = {"checkpoint": {"intervalSteps": CHECKPOINT_INTERVAL}, **training}

    def attempt(
        self, name: str, number: int, kill: Kill | None = None, **more: Any
    ) -> tuple[list[int], str]:
        """Run an attempt; returns exit codes by rank, and the logs."""
        ranks = self.start(name, number, kill, **more)
        return ranks.wait(), ranks.text()

    def start(self, name: str, number: int, kill: Kill | None = None, **more: Any) -> pool.Ranks:
        """Start an attempt without waiting for it."""
        where = self.root / name
        if not where.exists():
            write_data(where / "job" / "data", self.model)
        run = make_run(
            where, self.model, attempt=number, steps=STEPS, training=self._training, **more
        )
        folder = where / f"attempt-{number}"
        environment = {
            "FINETUNE_RUN_CONFIG": str(write_run(run, folder / "run.json")),
            RANK_FOLDER_ENV: str(folder),
        }
        return pool.start(run_rank, run, kill, world=2, folder=folder, environment=environment)

    def job(self, name: str) -> Path:
        """The job's folder."""
        return self.root / name / "job"


@dataclass(frozen=True)
class KillResult:
    """How a killed run continued."""

    strategy: str
    method: str
    kill: Kill
    at: int
    """Last step that the killed attempt finished."""
    resumed_from: int
    is_same: bool
    """Whether all losses are bit for bit those of the run that was never killed."""

    def sequence(self) -> str:
        """One line of the table."""
        where = "saving" if self.kill.during_save else "step"
        return (
            f"{self.strategy:<9} {self.method:<7} {self.kill.rank:>4}  {where:<7} {self.at:>7} "
            f"{self.resumed_from:>12} {self.at - self.resumed_from:>10}  "
            f"{'yes' if self.is_same else 'NO'}"
        )


TABLE_HEADER = (
    f"{'strategy':<9} {'method':<7} rank  within  at step resumed from steps lost  losses equal"
)


def kill_and_resume(runs: Runs, index: int, generator: random.Random) -> KillResult:
    """The `index`-th kill: strategies and methods take turns, the rest is random."""
    strategy = STRATEGIES[index % len(STRATEGIES)]
    method = METHODS[index // len(STRATEGIES) % len(METHODS)]
    how: dict[str, Any] = {"strategy": strategy, "method": method}
    if method == "LoRA":
        how["lora"] = {"dropout": 0.1}
    straight = f"straight-{strategy}-{method}"
    if not runs.job(straight).exists():
        codes, text = runs.attempt(straight, 1, **how)
        assert codes == [0, 0], text
    during_save = index % 3 == 2
    kill = Kill(
        rank=generator.randrange(2),
        signum=signal.SIGKILL,
        # After the last steps the run waits for its checkpoint: a kill there may come too late.
        step=generator.randrange(1, STEPS - (CHECKPOINT_INTERVAL + 2 if during_save else 1)),
        delay=0.0 if during_save else generator.uniform(0.0, 0.1),
        during_save=during_save,
    )
    name = f"killed-{index}"
    codes, text = runs.attempt(name, 1, kill, **how)
    assert codes[kill.rank] == -signal.SIGKILL, text
    assert codes[1 - kill.rank] == 1, text
    codes, text = runs.attempt(name, 2, **how)
    assert codes == [0, 0], text
    expected, first, second = (
        losses(runs.job(straight)),
        losses(runs.job(name), 1),
        losses(runs.job(name), 2),
    )
    resumed_from = STEPS - len(second)
    same = first == expected[: len(first)] and second == expected[resumed_from:]
    return KillResult(strategy, method, kill, len(first), resumed_from, same)
