"""What a job's status said and when, and what its attempts did, step by step.

The status comes from a watch, with this computer's clock at the arrival of the event. Steps come
from the history that rank 0 writes into the workspace, a line when a step is done. Both are facts
that no test could compute by itself, so that a row of the table can report them as they are.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes import client

from tests.e2e.history import Watching


@dataclass(frozen=True)
class Sighting:
    """The status of a job, and when it was seen."""

    at: float
    version: str
    status: dict[str, Any]

    @property
    def state(self) -> tuple[object, ...]:
        """What a fault must change: phase, attempt, failure, and what the job is stalled by."""
        stages = {stage["name"]: stage for stage in self.status.get("stages", ())}
        conditions = {item["type"]: item for item in self.status.get("conditions", ())}
        train, stalled = stages.get("train", {}), conditions.get("Stalled", {})
        failure = self.status.get("failure") or {}
        return (
            self.status.get("phase"),
            train.get("attempt"),
            failure.get("attempt"),
            failure.get("reason"),
            stalled.get("status") == "True" and stalled.get("reason"),
        )


class JobHistory(Watching):
    """A context in which every status of every FineTuneJob is remembered."""

    def __init__(self, api: client.CustomObjectsApi) -> None:
        super().__init__(api.list_cluster_custom_object, "finetune.dev", "v1alpha1", "finetunejobs")
        self.seen: dict[str, list[Sighting]] = defaultdict(list)

    def _record(self, found: dict[str, Any]) -> None:
        meta, now = found["metadata"], time.time()
        before = self.seen[meta["uid"]]
        if not before or before[-1].version != meta["resourceVersion"]:
            before.append(Sighting(now, meta["resourceVersion"], found.get("status") or {}))


@dataclass(frozen=True)
class Step:
    """One optimizer step that an attempt has done."""

    attempt: int
    number: int
    loss: float
    at: float


def steps_of(folder: Path) -> list[Step]:
    """Every step that the attempts of a job have done, by attempt, then in order."""
    found = []
    for path in folder.glob("report/train-*.jsonl"):
        attempt = int(path.stem.rpartition("-")[2])
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):  # a rank that is killed may leave half a line
                reported = json.loads(line)
                found.append(Step(attempt, reported["step"], reported["loss"], reported["time"]))
    return sorted(found, key=lambda step: (step.attempt, step.number))


def claims_of(folder: Path) -> dict[int, float]:
    """When each attempt has claimed the job."""
    paths = (folder / "claims").glob("*")
    return {int(path.name): path.stat().st_mtime for path in paths if path.name.isdigit()}


def lost_steps(steps: Sequence[Step], claims: dict[int, float]) -> int:
    """Steps that were done by one attempt and had to be done again by a later one.

    Steps of a partitioned attempt after its replacement started are wasted, but not lost.
    """
    lost, attempts = 0, sorted({step.attempt for step in steps})
    for before, after in itertools.pairwise(attempts):
        resumed_from = min(s.number for s in steps if s.attempt == after) - 1
        taken_over = claims.get(after, float("inf"))
        done = [s.number for s in steps if s.attempt == before and s.at <= taken_over]
        lost += max(done, default=resumed_from) - resumed_from
    return lost


def losses(steps: Sequence[Step]) -> dict[int, float]:
    """The loss of every step; where two attempts did one, that of the later attempt."""
    return {step.number: step.loss for step in steps}


def detected(seen: Sequence[Sighting], at: float) -> float | None:
    """Seconds from a fault to the first status that is another one because of it."""
    before = [sighting for sighting in seen if sighting.at <= at]
    for sighting in seen:
        if sighting.at > at and before and sighting.state != before[-1].state:
            return sighting.at - at
    return None


def resumed(steps: Sequence[Step], at: float) -> float | None:
    """Seconds from a fault to the first step of an attempt that replaced one."""
    old = {step.attempt for step in steps if step.at <= at}
    if not old:
        return None
    return min((s.at - at for s in steps if s.at > at and s.attempt not in old), default=None)


def longest_pause(steps: Sequence[Step], at: float) -> float:
    """The longest time between two steps of one attempt, from a fault on."""
    pairs = itertools.pairwise(steps)
    gaps = [b.at - a.at for a, b in pairs if a.attempt == b.attempt and b.at > at]
    return max(gaps, default=0.0)
