"""What the untrained model thought of the data, computed once and kept in the job's folder.

DPO and KTO compare the model with the one that training began from. A second copy of it would
take as much memory again; its log-probabilities of the rows that will be trained are a few bytes
each. They are computed before any trained weights are loaded. A later attempt uses the stored
numbers, at whatever world size, so that a resumed run is the run that was stopped.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from finetune_api.run import RunConfig
from numpy.typing import NDArray
from torch import distributed as dist

from finetune_trainer import checkpoint, schedule, waiting
from finetune_trainer.data.store import Row
from finetune_trainer.objectives.base import Setting
from finetune_trainer.objectives.batches import collate
from finetune_trainer.objectives.likelihood import RowLikelihood, untrained
from finetune_trainer.strategies import Engine

log = logging.getLogger("finetune")

Logps: TypeAlias = NDArray[np.float32]
"""fp32 [rows of the store], NaN for rows that no step trains."""


def reference_logps(
    name: str,
    rows: Callable[[int], Row],
    wanted: Sequence[int],
    setting: Setting,
    engine: Engine,
    likelihood: RowLikelihood,
) -> Logps:
    """The untrained model's log-probabilities of `rows(i)` for every i in `wanted`.

    Read from the job's folder, or computed by all ranks together and stored there under `name`.
    A collective.
    """
    path = folder_of(setting.run) / f"{name}.npy"
    stored = waiting.from_rank_zero(_stored(path, wanted) if dist.get_rank() == 0 else None)
    if stored is not None:
        return np.asarray(stored, dtype=np.float32)
    found = _compute(rows, wanted, setting, engine, likelihood)
    if dist.get_rank() == 0:
        checkpoint.require_newest(setting.job, setting.run.attempt)
        _store(path, found)
    waiting.barrier()
    return found


def folder_of(run: RunConfig) -> Path:
    """Where the numbers of this run lie; another model, data set or method has another folder."""
    settings = run.spec.get("training", {})
    facts = {
        "model": [run.spec.get("model"), run.model.revision if run.model else None],
        "data": [run.spec.get("dataset"), run.data.digest if run.data else None],
        "objective": run.spec.get("objective"),
        "method": run.spec.get("method"),
        "training": [settings.get(name) for name in ("precision", "maxSequenceLength", "seed")],
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return Path(run.paths.job) / "reference" / key


def _stored(path: Path, wanted: Sequence[int]) -> Logps | None:
    if not path.is_file():
        return None
    found: Logps = np.load(path)
    if len(found) <= max(wanted, default=-1) or np.isnan(found[list(wanted)]).any():
        log.warning("computed again, rows are missing: %s", path)
        return None
    return found


def _store(path: Path, logps: Logps) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    with partial.open("wb") as file:
        np.save(file, logps)
    partial.chmod(0o644)
    checkpoint.sync(partial)
    partial.rename(path)
    checkpoint.sync(path.parent)


def _compute(
    rows: Callable[[int], Row],
    wanted: Sequence[int],
    setting: Setting,
    engine: Engine,
    likelihood: RowLikelihood,
) -> Logps:
    total = max(wanted, default=-1) + 1
    found = torch.zeros(total, dtype=torch.float64, device=setting.device)
    order = sorted(wanted, key=lambda index: -len(rows(index).input_ids))
    with untrained(engine, prefix=setting.spec.method.type == "Prefix") as model:
        for members in schedule.deal(order, setting.plan.micro_batch_size):
            batch = collate([rows(index) for index in members], setting.flatten)
            each = likelihood(model, batch, len(members)).logps
            found[members] = each.double()
    # Each row was looked at by one rank, and is zero on the others.
    dist.all_reduce(found)
    logps = found.float().cpu().numpy()
    missing = np.ones(total, dtype=bool)
    missing[list(wanted)] = False
    logps[missing] = np.nan
    return np.asarray(logps, dtype=np.float32)
