"""Offload moves state to host memory and changes no loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer import strategies

from tests.trainer import pool
from tests.trainer.drive_training import drive
from tests.trainer.jobs import losses, make_run, to_json, write_data
from tests.trainer.tiny import tiny_model

STRATEGIES = ("ZeRO1", "ZeRO2", "ZeRO3", "FSDP")
METHODS = ("LoRA", "Full")
STEPS, STOP = 6, 3


def drive_and_inspect(path: Path) -> None:
    """Train, and write down for every case what its strategy keeps in host memory."""
    wrap, seen = strategies.wrap_model, []

    def wrap_and_inspect(model: Any, config: Any) -> Any:
        strategy = wrap(model, config)
        seen.append(offloaded_parts(strategy.model))
        return strategy

    setattr(strategies, "wrap_model", wrap_and_inspect)  # noqa: B010
    drive(path)
    (path.parent / "offloaded.json").write_text(json.dumps(seen))


def offloaded_parts(model: Any) -> list[str]:
    """The parts of the run that live in host memory."""
    if hasattr(model, "zero_offload_optimizer"):
        configs = {
            "optimizer": model.zero_offload_optimizer(),
            "weights": model.zero_offload_param(),
        }
        return [name for name, config in configs.items() if config and config.device == "cpu"]
    if hasattr(model, "_get_fsdp_state"):
        group = model._get_fsdp_state()._fsdp_param_group
        if type(group.offload_policy).__name__ == "CPUOffloadPolicy":
            return ["optimizer", "weights"]
    return []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("offload")
    model = tiny_model(root / "models" / "tiny")
    cases = []

    def add(name: str, method: str, folder: str = "", offload: bool = False, **how: Any) -> None:
        stop = how.pop("stop_after", None)
        job = root / (folder or name)
        if not job.exists():
            write_data(job / "job" / "data", model)
        lora = {"dropout": 0} if method == "LoRA" else None
        run = make_run(job, model, method=method, lora=lora, steps=STEPS, **how)
        run = run.model_copy(update={"plan": run.plan.model_copy(update={"offload": offload})})
        cases.append({"name": name, "run": to_json(run), "stop_after": stop})

    for method in METHODS:
        add(f"{method}-DDP", method)
        for strategy in STRATEGIES:
            how: dict[str, Any] = {"strategy": strategy, "offload": True}
            name = f"{method}-{strategy}"
            add(name, method, stop_after=STOP, **how)
            add(f"{name}-resumed", method, folder=name, attempt=2, **how)
    path = root / "cases.json"
    path.write_text(json.dumps(cases))
    pool.run(drive_and_inspect, path, world=2, folder=root / "logs")
    names = [case["name"] for case in cases]
    found = dict(zip(names, json.loads((root / "offloaded.json").read_text()), strict=True))
    (root / "offloaded.json").write_text(json.dumps(found))
    return root


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("method", METHODS)
def test_the_strategy_offloads_what_it_shards(trained: Path, method: str, strategy: str) -> None:
    found = json.loads((trained / "offloaded.json").read_text())
    sharded = ["optimizer", "weights"] if strategy in ("ZeRO3", "FSDP") else ["optimizer"]
    assert found[f"{method}-{strategy}"] == sharded
    assert found[f"{method}-DDP"] == []


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("method", METHODS)
def test_losses_across_a_stop_are_those_without_offload(
    trained: Path, method: str, strategy: str
) -> None:
    job = trained / f"{method}-{strategy}" / "job"
    found = [*losses(job, 1), *losses(job, 2)]
    assert len(losses(job, 1)) == STOP
    assert found == pytest.approx(losses(trained / f"{method}-DDP" / "job"), abs=1e-4)
