"""A training job that faults happen to: two pods of one process, slow enough to be hit in between.

The steps are slow because they are many tokens, not because anything sleeps. The learning rate is
constant, so that the losses of a longer run begin with those of a shorter one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hack.demo.kubectl import Kubectl
from tests.e2e.chaos import watching
from tests.e2e.chaos.table import Row
from tests.e2e.chaos.watching import JobHistory, Sighting, Step
from tests.e2e.jobs import tiny_job, until

T = TypeVar("T")

STEPS = 60
EVERY = 5
"""Steps between checkpoints."""
IN_FLIGHT = 3
"""Steps that may be done while a checkpoint is written and published."""
TRAINING = {
    "maxSteps": STEPS,
    "epochs": 1000,
    "batchSize": 16,
    "microBatchSize": 4,
    "maxSequenceLength": 512,
    "learningRate": 1e-3,
    "schedule": "constant",
    "warmupRatio": 0.0,
    "checkpoint": {"intervalSteps": EVERY},
}
ROWS = 1500
PROFILE = "chaos"
"""Like that for CPUs, but with less memory, so that several jobs fit on two nodes."""
MEMORY = "2Gi"
PATIENCE = 600.0
"""Seconds for a job to get from one point to the next, also on a machine with a load of ten."""


def write_rows(path: Path) -> None:
    """Rows that are all different, enough for several steps in an epoch."""
    colours = ("red", "green", "blue", "white", "black", "grey", "brown")
    rows = (
        {
            "prompt": f"What is the part with number {number}?",
            "completion": f"Part {number} is {colours[number % 7]}, {number * 37 % 101} cm long.",
        }
        for number in range(ROWS)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path.chmod(0o644)


def chaos_job(name: str, **changes: Any) -> dict[str, Any]:
    """The job of every case; `changes` are merged into the sections of its spec."""
    training = {**TRAINING, **changes.pop("training", {})}
    compute = {"profile": PROFILE, "nodes": 2, "strategy": "DDP", **changes.pop("compute", {})}
    data = {"train": [{"uri": "pvc://demo-assets/data/chaos.jsonl"}]}
    return tiny_job(name, dataset=data, training=training, compute=compute, **changes)


@dataclass
class Run:
    """One job and what is known of it; everything is read from the watch and the workspace."""

    name: str
    uid: str
    folder: Path
    """Its folder in the workspace, as this computer sees it."""
    jobs: JobHistory
    kubectl: Kubectl
    """In the job's namespace."""

    @property
    def seen(self) -> list[Sighting]:
        return self.jobs.seen[self.uid]

    @property
    def status(self) -> dict[str, Any]:
        """As last seen; empty before the first."""
        return self.seen[-1].status if self.seen else {}

    @property
    def phase(self) -> str:
        return str(self.status.get("phase", "Pending"))

    @property
    def attempt(self) -> int:
        """Of training; 0 before the first."""
        stages = {stage["name"]: stage for stage in self.status.get("stages", ())}
        return int(stages.get("train", {}).get("attempt", 0))

    def steps(self) -> list[Step]:
        return watching.steps_of(self.folder)

    def until(self, what: str, probe: Callable[[], T | None], seconds: float = PATIENCE) -> T:
        """The first thing that is not None or False; fails at once when the job has ended."""

        def look() -> T | None:
            found = probe()
            if not found and self.phase in ("Succeeded", "Failed"):
                reported = self.status.get("failure") or self.status.get("message")
                raise AssertionError(f"{self.name} is {self.phase} before {what}: {reported}")
            return found

        return until(f"{self.name}: {what}", seconds, look)

    def until_step(self, number: int, attempt: int = 1, seconds: float = PATIENCE) -> Step:
        """Wait until an attempt has done a step."""

        def reached() -> Step | None:
            done = (s for s in self.steps() if s.attempt >= attempt and s.number >= number)
            return next(done, None)

        return self.until(f"step {number} of attempt {attempt}", reached, seconds)

    def until_reported(self, at: float, seconds: float = PATIENCE) -> float:
        """Wait until the status reports a fault; returns after how many seconds it did."""
        probe = lambda: watching.detected(self.seen, at)  # noqa: E731
        return self.until("a status that reports the fault", probe, seconds)

    def until_resumed(self, at: float, seconds: float = PATIENCE) -> float:
        """Wait for the first step of an attempt that began after a fault; returns the seconds."""
        probe = lambda: watching.resumed(self.steps(), at)  # noqa: E731
        return self.until("the next attempt's first step", probe, seconds)

    def until_time(self, moment: float) -> None:
        """Let time pass, while the job must not end."""
        self.until("a moment", lambda: time.time() > moment)

    def until_ended(self, phase: str = "Succeeded", seconds: float = PATIENCE) -> dict[str, Any]:
        """Wait for the end; the status then."""
        self.until(f"its end as {phase}", lambda: self.phase == phase, seconds)
        return self.status

    def pods(self, attempt: int | None = None) -> list[dict[str, Any]]:
        """The training pods of an attempt (of the newest one), by index."""
        labels = {"job-uid": self.uid, "stage": "train", "attempt": attempt or self.attempt}
        selector = ",".join(f"finetune.dev/{key}={value}" for key, value in labels.items())
        found: list[dict[str, Any]] = self.kubectl.json("get", "pods", "-l", selector)["items"]
        return sorted(found, key=index_of)

    def pod(self, rank: int) -> str:
        """Name of the pod of a rank of the newest attempt."""
        return str(self.pods()[rank]["metadata"]["name"])

    def lost(self) -> int:
        return watching.lost_steps(self.steps(), watching.claims_of(self.folder))

    def compared(self, other: Run) -> str:
        """How its losses compare with those of another run that did the same steps."""
        mine, theirs = watching.losses(self.steps()), watching.losses(other.steps())
        common = mine.keys() & theirs.keys()
        if all(mine[step] == theirs[step] for step in common):
            return "equal, bit by bit"
        return f"within {max(abs(mine[step] - theirs[step]) for step in common):.0e}"

    def row(self, case: str, at: float | None, losses: str, notes: str = "") -> Row:
        """What the table says of it; a fault that changed nothing has no moment `at`."""
        failure = self.status.get("failure") or {}
        end = self.phase + (f": {failure['reason']}" if self.phase == "Failed" else "")
        steps = self.steps()
        return Row(
            case=case,
            end=end,
            attempts=self.attempt,
            lost=self.lost() if steps else None,
            reported=None if at is None else watching.detected(self.seen, at),
            resumed=None if at is None else watching.resumed(steps, at),
            losses=losses,
            notes=notes,
        )


def index_of(pod: dict[str, Any]) -> int:
    """Index of a training pod in its gang; with one process in each it is the rank."""
    return int(pod["metadata"]["labels"].get("batch.kubernetes.io/job-completion-index", 0))


def running(run: Run, attempt: int) -> list[str]:
    """Pods of an attempt that have not ended."""
    return [
        pod["metadata"]["name"]
        for pod in run.pods(attempt)
        if pod["status"].get("phase") not in ("Succeeded", "Failed")
    ]
