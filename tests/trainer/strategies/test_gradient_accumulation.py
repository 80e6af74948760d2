"""Gradients of many small micro-batches are added in fp32, whatever the model computes in.

In bf16, 1 + 1/512 is 1: sixty-three small gradients after a large one would vanish.
"""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest

from tests.trainer import pool
from tests.trainer.jobs import make_run, to_json, write_data
from tests.trainer.tiny import tiny_model

STRATEGIES = ("DDP", "ZeRO1", "ZeRO2", "ZeRO3", "FSDP")
METHODS = ("LoRA", "Full")
PRECISIONS = ("bf16", "fp32")
EVERY = list(itertools.product(STRATEGIES, METHODS, PRECISIONS))
OFFLOADED = ("ZeRO1", "ZeRO2", "ZeRO3", "FSDP")
SMALL, COUNT = 2.0**-9, 64


def measure_norms(cases: Path) -> None:
    """Gradient norms of a large micro-batch alone, and of it with many small ones.

    All are the same micro-batch, and its loss is scaled by powers of two, so that nothing but the
    addition can round.
    """
    import torch
    from finetune_api.run_config import RunConfig
    from finetune_trainer import strategies
    from finetune_trainer.distributed.startup_timer import StartupTimer
    from finetune_trainer.training import worker

    torch.set_num_threads(1)
    strategies.prepare_communication("ZeRO2", "cpu")
    runs = {
        name: RunConfig.model_validate(run) for name, run in json.loads(cases.read_text()).items()
    }
    worker.join_process_group(next(iter(runs.values())))
    norms = {}
    for name, run in runs.items():
        model, strategy, _ = worker.build_model(run, StartupTimer())
        # Different data on each rank.
        ids = torch.arange(5, 21)[None] + 100 * int(os.environ["RANK"])  # [1, 16]
        found = []
        for scales in ([1.0], [1.0, *[SMALL] * (COUNT - 1)]):
            for index, scale in enumerate(scales):
                with strategy.accumulate(is_last=index == len(scales) - 1):
                    loss = strategy.model(input_ids=ids, labels=ids, use_cache=False).loss
                    strategy.backward(loss.float() * scale)
            found.append(strategy.step(0.0))
        norms[name] = found
        strategy.close()
        del model
    (cases.parent / f"norms-{os.environ['RANK']}.json").write_text(json.dumps(norms))


@pytest.fixture(scope="module")
def norms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    root = tmp_path_factory.mktemp("accumulation")
    model = tiny_model(root / "models" / "tiny")
    write_data(root / "job" / "data", model)
    cases = {}
    for strategy, method, precision in EVERY:
        lora = {"dropout": 0} if method == "LoRA" else None
        how = {"strategy": strategy, "method": method, "training": {"precision": precision}}
        cases[f"{strategy}-{method}-{precision}"] = to_json(make_run(root, model, lora=lora, **how))
    for strategy in OFFLOADED:
        training = {"precision": "bf16"}
        run = make_run(root, model, strategy=strategy, method="Full", training=training)
        plan = run.require_plan().model_copy(update={"offload": True})
        cases[f"{strategy}-offload"] = to_json(run.model_copy(update={"plan": plan}))
    path = root / "cases.json"
    path.write_text(json.dumps(cases))
    pool.run(measure_norms, path, world=2, folder=root / "logs")
    found: dict[str, list[float]] = json.loads((root / "norms-0.json").read_text())
    return found


@pytest.mark.parametrize(("strategy", "method", "precision"), EVERY)
def test_small_gradients_do_not_vanish_next_to_a_large_one(
    norms: dict[str, list[float]], strategy: str, method: str, precision: str
) -> None:
    check_sum(norms[f"{strategy}-{method}-{precision}"])


@pytest.mark.parametrize("strategy", OFFLOADED)
def test_offloaded_gradients_do_not_vanish(norms: dict[str, list[float]], strategy: str) -> None:
    check_sum(norms[f"{strategy}-offload"])


def check_sum(measured: list[float]) -> None:
    alone, together = measured
    assert alone > 0
    assert together / alone == pytest.approx(1 + (COUNT - 1) * SMALL, rel=2e-4)
