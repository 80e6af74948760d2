"""Compiled blocks have the losses of uncompiled ones; without a compiler no run starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.trainer import pool
from tests.trainer.drive_training import drive
from tests.trainer.jobs import losses, make_run, to_json, write_data
from tests.trainer.tiny import tiny_model

STRATEGIES = ("DDP", "ZeRO2", "FSDP")
MINUTES = 8
# Most of it is spent in the C++ compiler.
pytestmark = pytest.mark.timeout(4 * 60 * MINUTES)


def drive_and_count(path: Path) -> None:
    """Train, and write dynamo's count of graphs to a file."""
    from torch._dynamo.utils import counters

    drive(path)
    (path.parent / f"counted-{path.stem}.json").write_text(json.dumps(counters["stats"]))


def drive_without_compiler(path: Path) -> None:
    """Train as on a machine without a C++ compiler."""
    from torch._inductor import config

    config.cpp.cxx = ("no-such-compiler",)
    drive(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compile")
    model = tiny_model(root / "models" / "tiny")

    def case(name: str, **how: Any) -> dict[str, Any]:
        write_data(root / name / "job" / "data", model)
        run = make_run(root / name, model, lora={"dropout": 0}, **how)
        return {"name": name, "run": to_json(run), "fails": True}

    def train(function: Any, one: dict[str, Any], cache: str) -> None:
        # One launch per case: no process compiles for two strategies.
        folder = root / one["name"]
        path = root / f"{one['name']}.case"
        path.write_text(json.dumps([one]))
        where = {"TORCHINDUCTOR_CACHE_DIR": str(root / cache)}
        deadline = 60.0 * MINUTES
        pool.run(function, path, world=2, folder=folder, environment=where, deadline=deadline)

    compiled = {"compile": True, "gradientCheckpointing": True}
    train(drive_without_compiler, case("missing", training=compiled), "none")
    train(drive, case("plain"), "none")
    for strategy in STRATEGIES:
        train(drive_and_count, case(strategy, strategy=strategy, training=compiled), "cache")
    return root


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_compiled_blocks_have_the_same_losses(trained: Path, strategy: str) -> None:
    seen = json.loads((trained / f"{strategy}-0.json").read_text())
    assert seen.get("error") is None
    assert json.loads((trained / f"counted-{strategy}.json").read_text())["unique_graphs"] > 0
    plain = losses(trained / "plain" / "job")
    assert len(plain) == 6
    assert losses(trained / strategy / "job") == pytest.approx(plain, abs=1e-4)


def test_a_machine_without_a_compiler_is_refused_before_training(trained: Path) -> None:
    error = json.loads((trained / "missing-0.json").read_text())["error"]
    assert error["reason"] == "CannotCompile"
    assert "training.compile" in error["remedy"]
    assert not (trained / "missing" / "job" / "report").exists()
