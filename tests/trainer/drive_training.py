"""Runs many training cases in one launch of torchrun, or in ranks that `pool` forks.

Called with a file of cases: [{"name", "run": RunConfig, "stop_after": step or null}]. Each case
calls what production calls; what it observed is written next to the run file, as
<name>-<rank>.json.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from finetune_api.run_config import RunConfig
from finetune_trainer import strategies
from finetune_trainer.distributed.rank_reporter import RankReporter
from finetune_trainer.runtime.errors import classify_error
from finetune_trainer.runtime.telemetry import RankFile
from finetune_trainer.training import worker
from torch import distributed as dist


def inspect(strategy: Any, seen: dict[str, Any]) -> None:
    """What the ranks hold: shapes of local shards, and a checksum of the gathered weights."""
    model = getattr(strategy.model, "module", strategy.model)
    name, weight = next(strategies.trainable_parameters(model))
    local = weight.to_local() if hasattr(weight, "to_local") else weight
    # ZeRO-3 keeps a flat shard in ds_tensor and leaves the weight itself empty.
    local = getattr(weight, "ds_tensor", local)
    seen["first"] = name
    seen["local_elements"] = local.numel()
    seen["whole_elements"] = getattr(weight, "ds_numel", weight.numel())
    seen["optimizer_elements"] = optimizer_elements(strategy)
    digest = hashlib.sha256()
    for _, weight in strategy.gather_weights():
        digest.update(weight.contiguous().numpy().tobytes())
    seen["trained_digest"] = digest.hexdigest()


def optimizer_elements(strategy: Any) -> int:
    """Elements of AdamW's first moment that this rank holds; 0 where another optimizer has none."""
    optimizer = getattr(strategy, "_optimizer", None) or strategy.model.optimizer
    total = 0
    for state in getattr(optimizer, "optimizer", optimizer).state.values():
        # bitsandbytes calls the first moment state1.
        moment = state.get("exp_avg", state.get("state1"))
        if moment is None:
            continue
        total += (moment.to_local() if hasattr(moment, "to_local") else moment).numel()
    return total


class StopAfter:
    """Requests a stop of the last rank alone at the end of a step, as when one node is drained."""

    def __init__(self, step: int | None) -> None:
        self._step = step
        self._reads = 0

    @property
    def requested(self) -> bool:
        """The training loop reads this once per step."""
        self._reads += 1
        return dist.get_rank() == dist.get_world_size() - 1 and self._reads == self._step

    def defer_to_boundary(self) -> None:
        """No signal is handled here."""


def run_case(case: dict[str, Any], folder: Path) -> None:
    run = RunConfig.model_validate(case["run"])
    rank = dist.get_rank()
    seen: dict[str, Any] = {}
    original_build, original_load = worker.build_model, strategies.load_model

    def build(*args: Any) -> Any:
        model, strategy, config = original_build(*args)
        close = strategy.close

        def inspect_and_close() -> None:
            inspect(strategy, seen)
            close()

        strategy.close = inspect_and_close
        accumulate = strategy.accumulate

        @contextlib.contextmanager
        def watched(is_last: bool) -> Iterator[None]:
            with accumulate(is_last):
                yield
            if not is_last:
                _, weight = next(strategies.trainable_parameters(model))
                seen["reduced_between"] = weight.grad is not None

        strategy.accumulate = watched
        return model, strategy, config

    def load(*args: Any) -> Any:
        model = original_load(*args)
        seen["loaded_on"] = next(model.parameters()).device.type
        return model

    ranks = folder / "ranks" / case["name"]
    ranks.mkdir(parents=True, exist_ok=True)
    reporter = RankReporter(RankFile(ranks, rank))
    setattr(worker, "build_model", build)  # noqa: B010
    setattr(strategies, "load_model", load)  # noqa: B010
    try:
        finished, facts = worker.train(run, reporter, StopAfter(case.get("stop_after")))
        seen.update(finished=finished, facts=facts.to_wire(), reported=reporter.state)
    except Exception as error:
        if not case.get("fails"):
            raise
        seen["error"] = classify_error(error)[0].to_wire()
    finally:
        setattr(worker, "build_model", original_build)  # noqa: B010
        setattr(strategies, "load_model", original_load)  # noqa: B010
    (folder / f"{case['name']}-{rank}.json").write_text(json.dumps(seen))
    dist.barrier()


def drive(path: Path) -> None:
    """Run every case of the file: what each rank does."""
    cases = json.loads(path.read_text())
    folder = path.parent
    torch.set_num_threads(1)
    first = RunConfig.model_validate(cases[0]["run"])
    strategies.prepare_communication("ZeRO2", "cpu")
    worker.join_process_group(first)
    for case in cases:
        started = time.monotonic()
        if case.get("copy_from") and dist.get_rank() == 0:
            source, target = case["copy_from"], Path(case["run"]["paths"]["job"])
            shutil.copytree(source, target, dirs_exist_ok=True)
        dist.barrier()
        run_case(case, folder)
        if os.environ.get("RANK") == "0":
            print("case", case["name"], round(time.monotonic() - started, 1), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    drive(Path(sys.argv[1]))
