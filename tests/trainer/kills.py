"""Attempts that die: ranks that are killed, or asked to stop, at a chosen point of a real run.

A rank runs what production runs. Beside it a thread looks at the run's own files, and when they
say that the point has been reached it sends a signal to its own process, which does not expect it.
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

from finetune_api.run import RunConfig
from finetune_trainer.runtime.telemetry import RANK_FOLDER_ENV
from finetune_trainer.training import worker

from tests.trainer import pool
from tests.trainer.jobs import losses, make_run, write_data, write_run

STEPS = 12
EVERY = 2
"""Steps between checkpoints."""
STRATEGIES = ("DDP", "ZeRO2", "ZeRO3", "FSDP")
METHODS = ("LoRA", "Full")
STRUCK = "struck"
"""A file of the job, as old as the signal."""


@dataclass(frozen=True)
class Doom:
    """What happens to one rank."""

    rank: int
    signum: int
    step: int = 0
    """Steps that are done before it happens."""
    delay: float = 0.0
    """Seconds after that step."""
    writing: bool = False
    """Instead: while a checkpoint of a later step is being written."""


def doomed(run: RunConfig, doom: Doom | None) -> None:
    """One rank of an attempt; `doom` may be another rank's."""
    if doom and doom.rank == int(os.environ["RANK"]):
        threading.Thread(target=strike, args=(run, doom), daemon=True).start()
    worker.main()


def strike(run: RunConfig, doom: Doom) -> None:
    """Wait for the point, then send the signal."""
    job = Path(run.paths.job)
    history = job / "report" / f"train-{run.attempt}.jsonl"
    scratch = job / f".train-{run.attempt}"

    def reached() -> bool:
        if doom.writing:
            return any(int(path.name[5:13]) > doom.step for path in scratch.glob("step-*"))
        return history.exists() and len(history.read_text().splitlines()) >= doom.step

    while not reached():
        time.sleep(0.001)
    time.sleep(doom.delay)
    (job / STRUCK).touch()
    os.kill(os.getpid(), doom.signum)


class Runs:
    """Attempts of tiny jobs under one folder."""

    def __init__(self, root: Path, model: Path, **training: Any) -> None:
        self.root, self.model = root, model
        self._training = {"checkpoint": {"intervalSteps": EVERY}, **training}

    def attempt(
        self, name: str, number: int, doom: Doom | None = None, **more: Any
    ) -> tuple[list[int], str]:
        """Run an attempt; exit codes by rank, and the logs."""
        ranks = self.start(name, number, doom, **more)
        return ranks.wait(), ranks.text()

    def start(self, name: str, number: int, doom: Doom | None = None, **more: Any) -> pool.Ranks:
        """Begin an attempt."""
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
        return pool.start(doomed, run, doom, world=2, folder=folder, environment=environment)

    def job(self, name: str) -> Path:
        """The job's folder."""
        return self.root / name / "job"


@dataclass(frozen=True)
class Killed:
    """How a killed run went on."""

    strategy: str
    method: str
    doom: Doom
    at: int
    """Last step that the killed attempt did."""
    resumed_from: int
    same: bool
    """Whether all losses are those of the run that was never killed, bit by bit."""

    def row(self) -> str:
        """One line of the table."""
        where = "saving" if self.doom.writing else "step"
        return (
            f"{self.strategy:<9} {self.method:<7} {self.doom.rank:>4}  {where:<7} {self.at:>7} "
            f"{self.resumed_from:>12} {self.at - self.resumed_from:>10}  "
            f"{'yes' if self.same else 'NO'}"
        )


HEAD = f"{'strategy':<9} {'method':<7} rank  within  at step resumed from steps lost  losses equal"


def kill_and_resume(runs: Runs, index: int, dice: random.Random) -> Killed:
    """The `index`-th kill: strategies and methods take turns, the rest is drawn."""
    strategy = STRATEGIES[index % len(STRATEGIES)]
    method = METHODS[index // len(STRATEGIES) % len(METHODS)]
    how: dict[str, Any] = {"strategy": strategy, "method": method}
    if method == "LoRA":
        how["lora"] = {"dropout": 0.1}
    straight = f"straight-{strategy}-{method}"
    if not runs.job(straight).exists():
        codes, text = runs.attempt(straight, 1, **how)
        assert codes == [0, 0], text
    writing = index % 3 == 2
    doom = Doom(
        rank=dice.randrange(2),
        signum=signal.SIGKILL,
        # The last checkpoint is waited for at once, so that a kill may come too late.
        step=dice.randrange(1, STEPS - (EVERY + 2 if writing else 1)),
        delay=0.0 if writing else dice.uniform(0.0, 0.1),
        writing=writing,
    )
    name = f"killed-{index}"
    codes, text = runs.attempt(name, 1, doom, **how)
    assert codes[doom.rank] == -signal.SIGKILL, text
    assert codes[1 - doom.rank] == 1, text
    codes, text = runs.attempt(name, 2, **how)
    assert codes == [0, 0], text
    expected, first, second = (
        losses(runs.job(straight)),
        losses(runs.job(name), 1),
        losses(runs.job(name), 2),
    )
    resumed_from = STEPS - len(second)
    same = first == expected[: len(first)] and second == expected[resumed_from:]
    return Killed(strategy, method, doom, len(first), resumed_from, same)
