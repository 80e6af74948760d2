"""The world size changes the speed of a run, not its losses.

Without dropout the same job has the same losses on 1, 2 and 4 ranks and under every strategy. The
global batch is not a multiple of the ranks' micro-batches, and its sequences differ in length, so a
loss averaged per rank instead of per token would differ.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.trainer import pool
from tests.trainer.drive_training import drive
from tests.trainer.jobs import losses, make_run, to_json, write_data
from tests.trainer.tiny import tiny_model

WORLDS = (1, 2, 4)
STRATEGIES = ("DDP", "ZeRO1", "ZeRO2", "ZeRO3", "FSDP")
METHODS = ("LoRA", "Full")
BATCH = 7


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("worlds")
    model = tiny_model(root / "models" / "tiny")
    for world in WORLDS:
        cases = []
        for method in METHODS:
            for strategy in STRATEGIES:
                name = f"{method}-{strategy}"
                where = root / str(world) / name
                write_data(where / "job" / "data", model)
                run = make_run(
                    where,
                    model,
                    method=method,
                    strategy=strategy,
                    world_size=world,
                    lora={"dropout": 0} if method == "LoRA" else None,
                    batch_size=BATCH,
                )
                cases.append({"name": name, "run": to_json(run)})
        path = root / str(world) / "cases.json"
        path.write_text(json.dumps(cases))
        pool.run(drive, path, world=world, folder=root / str(world) / "logs")
    return root


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("method", METHODS)
def test_losses_agree_on_one_two_and_four_ranks(trained: Path, method: str, strategy: str) -> None:
    reference = losses(trained / "1" / f"{method}-DDP" / "job")
    assert reference[-1] < reference[0]
    for world in WORLDS:
        found = losses(trained / str(world) / f"{method}-{strategy}" / "job")
        assert found == pytest.approx(reference, abs=2e-4), world
