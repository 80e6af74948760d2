"""The matrix of methods, objectives and strategies trains, resumes, exports and answers.

One launch of torchrun with two processes runs all cases. Continuous integration takes the fewest
cases in which every pair of values occurs; `make matrix` takes all of them. What the table forbids
is refused by the real API server in tests/api.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from finetune_api.facts import DataFacts, ModelFacts
from finetune_trainer.prepare import prepare
from finetune_trainer.runtime.telemetry import Report
from finetune_trainer.sources import Credentials

from tests.trainer.families import tiny_mixtral
from tests.trainer.jobs import free_port, to_json, torchrun
from tests.trainer.matrix import (
    ALLOWED,
    EVERY,
    STEPS,
    STOP,
    Case,
    pairwise,
    plan_of,
    run_of,
    write_data,
)
from tests.trainer.tiny import tiny_model

HAS_ALL = os.environ.get("FINETUNE_MATRIX") == "all"
CASES = ALLOWED if HAS_ALL else pairwise(ALLOWED)
# All cells take half an hour on two idle cores.
pytestmark = [pytest.mark.timeout(4 * 3600)] if HAS_ALL else []
SHARDED = ("ZeRO3", "FSDP", "ZeRO3 with offload", "FSDP with offload")


class Outcomes:
    """Files that the launch left behind."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, case: Case, run: str, rank: int = 0) -> Any:
        path = self.root / f"{case.name}-{run}-{rank}.json"
        if not path.exists():
            logs = [self.root / f"{case.name}-{rank}.log" for rank in range(case.world)]
            pytest.fail("\n".join(log.read_text()[-4000:] for log in logs if log.exists()))
        return json.loads(path.read_text())

    def history(self, case: Case, folder: str, attempt: int = 1) -> list[dict[str, Any]]:
        path = self.root / folder / case.name / "job" / "report" / f"train-{attempt}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]


def prepared(case: Case, root: Path) -> tuple[ModelFacts, DataFacts]:
    """Run the prepare stage of a case below `root`."""
    run, secrets = run_of(case, root, "prepare"), defaultdict(lambda: Credentials({}))
    result = prepare(run, Report("prepare", 1), secrets)
    assert result.model is not None
    assert result.data is not None
    return result.model, result.data


def cell(case: Case, root: Path) -> dict[str, Any]:
    """The run files of a case; both of its runs train on the same prepared data."""
    runs: dict[str, Any] = {"name": case.name, "world": case.world, "port": free_port()}
    model, data = prepared(case, root / "a")
    shutil.copytree(root / "a" / case.name, root / "b" / case.name)
    known: Mapping[str, Any] = {"model": model, "data": data, "plan": plan_of(case, model, data)}
    for run, folder, attempt in (("straight", "a", 1), ("stopped", "b", 1), ("resumed", "b", 2)):
        runs[run] = to_json(run_of(case, root / folder, "train", attempt, **known))
        if run == "resumed":
            runs["export"] = to_json(run_of(case, root / folder, "export", 1, **known))
    return runs


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    root = tmp_path_factory.mktemp("matrix")
    tiny_model(root / "volumes" / "models" / "dense")
    tiny_mixtral(root / "volumes" / "models" / "moe")
    write_data(root / "volumes" / "data")
    (root / "cases.json").write_text(json.dumps([cell(case, root) for case in CASES]))
    print(torchrun(2, "tests.trainer.matrix_host", str(root), seconds=30 + 30 * len(CASES)))
    return Outcomes(root)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_cell_of_the_matrix(outcomes: Outcomes, case: Case) -> None:
    straight = [outcomes.read(case, "straight", rank) for rank in range(case.world)]
    assert straight[0]["finished"]
    assert straight[0]["facts"]["worldSize"] == case.world
    assert wrapped_as(case, straight[0]["facts"]["engine"])
    if case.strategy in SHARDED:
        assert straight[0]["local_elements"] < straight[0]["whole_elements"]
    else:
        assert straight[0]["local_elements"] == straight[0]["whole_elements"]
    assert len({outcome["trained_digest"] for outcome in straight}) == 1
    history = outcomes.history(case, "a")
    assert has_learnt(case, history), history
    resumed = outcomes.read(case, "resumed")
    assert resumed["facts"]["resumedFromStep"] == STOP
    stopped = outcomes.history(case, "b", 1) + outcomes.history(case, "b", 2)
    assert [step["loss"] for step in stopped] == [step["loss"] for step in history]
    assert resumed["trained_digest"] == straight[0]["trained_digest"]
    exported = json.loads((outcomes.root / f"{case.name}-export.json").read_text())
    assert exported.get("generated") == 4 or "score" in exported


def wrapped_as(case: Case, engine: str) -> bool:
    """Whether this is the class that the strategy wraps a model in."""
    if case.strategy == "one process":
        return not engine.startswith(("Distributed", "DeepSpeed", "FSDP"))
    known = {"DDP": "DistributedDataParallel", "ZeRO": "DeepSpeedEngine", "FSDP": "FSDP"}
    return engine.startswith(next(v for k, v in known.items() if case.strategy.startswith(k)))


def has_learnt(case: Case, history: list[dict[str, Any]]) -> bool:
    """Whether the loss fell; for GRPO on the same answers, which are new at every second step."""
    assert len(history) == STEPS
    losses = [step["loss"] for step in history]
    if case.objective == "GRPO":
        return sum(losses[1::2]) < sum(losses[::2])
    return sum(losses[-3:]) < sum(losses[:3])


def test_the_selection_has_every_pair_of_the_whole_matrix() -> None:
    def pairs(cases: list[Case], first: str, second: str) -> set[tuple[str, str]]:
        return {(getattr(case, first), getattr(case, second)) for case in cases}

    cut = pairwise(ALLOWED)
    for names in itertools.combinations(("method", "objective", "strategy"), 2):
        assert pairs(cut, *names) == pairs(ALLOWED, *names)
    assert len(cut) < len(ALLOWED) < len(EVERY)
