"""Resuming on as many, fewer or more ranks, from checkpoints that were written beside training.

No dropout here: another number of ranks draws other masks. That a resume on as many ranks is exact
with dropout on is shown by test_strategies.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.trainer import pool
from tests.trainer.drive_training import drive
from tests.trainer.jobs import losses, make_run, write_data
from tests.trainer.test_strategies import METHODS, STRATEGIES, wire
from tests.trainer.tiny import tiny_model

STEPS, STOP = 6, 3
CHANGES = ((2, 1), (1, 2), (2, 4))


def case(root: Path, model: Path, name: str, **more: Any) -> dict[str, Any]:
    where = root / name
    if not where.exists():
        write_data(where / "job" / "data", model)
    stop = more.pop("stop_after", None)
    lora = {"dropout": 0.0} if more["method"] == "LoRA" else None
    run = make_run(where, model, steps=STEPS, batch_size=8, lora=lora, **more)
    return {"name": f"{name}-{run.attempt}", "run": wire(run), "stop_after": stop}


def run_cases(root: Path, label: str, world: int, cases: list[dict[str, Any]]) -> None:
    folder = root / label
    folder.mkdir()
    (folder / "cases.json").write_text(json.dumps(cases))
    pool.run(drive, folder / "cases.json", world=world, folder=folder)


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every method and strategy, stopped on some ranks and resumed on others."""
    root = tmp_path_factory.mktemp("resharded")
    model = tiny_model(root / "models" / "tiny")
    pairs = [
        {"method": method, "strategy": strategy} for method in METHODS for strategy in STRATEGIES
    ]

    def all_pairs(name: str, world: int, **more: Any) -> list[dict[str, Any]]:
        made = []
        for pair in pairs:
            its = f"{pair['method']}-{pair['strategy']}-{name}"
            made.append(case(root, model, its, world_size=world, **pair, **more))
        return made

    run_cases(root, "straight", 2, all_pairs("straight", 2))
    for before, after in CHANGES:
        name = f"{before}-{after}"
        run_cases(root, f"{name}-a", before, all_pairs(name, before, stop_after=STOP))
        run_cases(root, f"{name}-b", after, all_pairs(name, after, attempt=2))
    return root


@pytest.mark.parametrize(("before", "after"), CHANGES)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("method", METHODS)
def test_another_number_of_ranks_goes_on_with_the_same_losses(
    changed: Path, method: str, strategy: str, before: int, after: int
) -> None:
    straight = losses(changed / f"{method}-{strategy}-straight" / "job")
    job = changed / f"{method}-{strategy}-{before}-{after}" / "job"
    first, second = losses(job, 1), losses(job, 2)
    assert len(first) == STOP
    assert len(second) == STEPS - STOP
    assert first + second == pytest.approx(straight, abs=1e-4)
