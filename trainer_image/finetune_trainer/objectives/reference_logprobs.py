"""What the untrained model thought of the data, computed once and kept in the job's folder.

DPO and KTO compare the model with the one that training began from. A second copy of it would
take as much memory again; its log-probabilities of the rows that will be trained are a few bytes
each. They are computed before any trained weights are loaded. A later attempt uses the stored
numbers, at whatever world size, so that a resumed run is the run that was stopped.
"""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from finetune_api.run import RunConfig
from numpy.typing import NDArray
from torch import distributed as dist

from finetune_trainer.data import sampler
from finetune_trainer.data.token_store import PackedSequence
from finetune_trainer.distributed import collectives
from finetune_trainer.objectives.base import ObjectiveContext
from finetune_trainer.objectives.collate import collate
from finetune_trainer.objectives.sequence_logprobs import RowLikelihood, untrained
from finetune_trainer.runtime.fencing import Attempt
from finetune_trainer.strategies import TrainingStrategy

BLOCK = 4096
"""Rows after which the numbers are stored."""
Logps: TypeAlias = NDArray[np.float32]
"""fp32 [rows of the store], NaN for rows that no step trains."""


def reference_logps(
    name: str,
    rows: Callable[[int], PackedSequence],
    wanted: Sequence[int],
    setting: ObjectiveContext,
    engine: TrainingStrategy,
    likelihood: RowLikelihood,
) -> Logps:
    """The untrained model's log-probabilities of `rows(i)` for every i in `wanted`.

    Read from the job's folder, or computed by all ranks together and stored there under `name`,
    block by block: an attempt that is stopped meanwhile leaves the next one less to do. A
    collective.
    """
    path = folder_of(setting.run) / f"{name}.npy"
    size = max(wanted, default=-1) + 1
    found = np.full(size, np.nan, dtype=np.float32)
    stored: Logps | None = collectives.from_rank_zero(
        _stored(path) if dist.get_rank() == 0 else None
    )
    if stored is not None:
        found[: len(stored)] = stored[:size]
    # Long rows first: what does not fit into memory fails at once.
    order = sorted(wanted, key=lambda index: -len(rows(index).input_ids))
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        if not np.isnan(found[block]).any():
            continue
        found[block] = _compute(rows, block, setting, engine, likelihood)
        if dist.get_rank() == 0:
            _store(Attempt(setting.job, setting.run.attempt), path, found)
        collectives.barrier()
    return found


def folder_of(run: RunConfig) -> Path:
    """Where the numbers of this run lie; another model, data set or method has another folder."""
    settings = run.raw_spec.get("training", {})
    facts = {
        "model": [run.raw_spec.get("model"), run.model.revision if run.model else None],
        "data": [run.raw_spec.get("dataset"), run.data.digest if run.data else None],
        "objective": run.raw_spec.get("objective"),
        "method": run.raw_spec.get("method"),
        "training": [settings.get(name) for name in ("precision", "maxSequenceLength", "seed")],
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return Path(run.paths.job) / "reference" / key


def _stored(path: Path) -> Logps | None:
    return np.load(path) if path.is_file() else None


def _store(attempt: Attempt, path: Path, logps: Logps) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.save(content, logps)
    attempt.publish_file(path, content.getvalue())


def _compute(
    rows: Callable[[int], PackedSequence],
    block: Sequence[int],
    setting: ObjectiveContext,
    engine: TrainingStrategy,
    likelihood: RowLikelihood,
) -> Logps:
    found = torch.zeros(len(block), dtype=torch.float64, device=setting.device)
    with untrained(engine, prefix=setting.spec.method.type == "Prefix") as model:
        for members in sampler.split_into_micro_batches(range(len(block)), setting.plan.micro_batch_size):
            batch = collate([rows(block[member]) for member in members], setting.flatten)
            found[members] = likelihood(model, batch, len(members)).logps.double()
    # Each row was looked at by one rank, and is zero on the others.
    dist.all_reduce(found)
    return np.asarray(found.float().cpu().numpy())
