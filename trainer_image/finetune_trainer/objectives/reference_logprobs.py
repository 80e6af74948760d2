"""Reference logps: what the untrained model assigns to the data, computed once per job.

DPO and KTO compare the model with the one that training began from. A second copy of that model
would take as much memory again; its logps of the sequences that will be trained are four bytes
each. They are computed before any trained weights are restored, and stored in the job's folder. A
later attempt reads them at any world size, so that a resumed run continues the run that stopped.
"""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from finetune_api.run_config import RunConfig
from numpy.typing import NDArray
from torch import distributed as dist

from finetune_trainer.data import sampler
from finetune_trainer.data.token_store import PackedSequence
from finetune_trainer.distributed import collectives
from finetune_trainer.objectives.base import ObjectiveContext
from finetune_trainer.objectives.collate import collate
from finetune_trainer.objectives.sequence_logprobs import SequenceLogpsHook, untrained_model
from finetune_trainer.runtime.fencing import Attempt
from finetune_trainer.strategies import TrainingStrategy

BLOCK_SEQUENCES = 4096
"""Sequences after which the logps so far are stored."""
Logps: TypeAlias = NDArray[np.float32]
"""fp32 [sequences of the store], NaN for sequences that no step trains on."""


def load_or_compute_reference_logps(
    name: str,
    get_sequence: Callable[[int], PackedSequence],
    indices: Sequence[int],
    context: ObjectiveContext,
    strategy: TrainingStrategy,
    compute_logps: SequenceLogpsHook,
) -> Logps:
    """The untrained model's logps of `get_sequence(i)` for every i in `indices`.

    Read from `name`.npy in the job's folder. All ranks compute what is missing there and store it
    block by block, so that an attempt that is stopped meanwhile leaves less to the next one. A
    collective.
    """
    path = reference_folder(context.run) / f"{name}.npy"
    size = max(indices, default=-1) + 1
    logps = np.full(size, np.nan, dtype=np.float32)
    is_stored = dist.get_rank() == 0 and path.is_file()
    stored: Logps | None = collectives.broadcast_from_rank_zero(
        np.load(path) if is_stored else None
    )
    if stored is not None:
        logps[: len(stored)] = stored[:size]
    # Longest first: if the model runs out of memory, it does so at once.
    order = sorted(indices, key=lambda index: -len(get_sequence(index).input_ids))
    for start in range(0, len(order), BLOCK_SEQUENCES):
        block = order[start : start + BLOCK_SEQUENCES]
        if not np.isnan(logps[block]).any():
            continue
        logps[block] = _compute_block(get_sequence, block, context, strategy, compute_logps)
        if dist.get_rank() == 0:
            _store(Attempt(context.job, context.run.attempt), path, logps)
        collectives.barrier()
    return logps


def reference_folder(run: RunConfig) -> Path:
    """Where the logps of this run are stored; another model, adapter, data set or method has
    another folder."""
    settings, adapter = run.raw_spec.get("training", {}), run.model.adapter if run.model else None
    facts = {
        "model": [run.raw_spec.get("model"), run.model.revision if run.model else None],
        "data": [run.raw_spec.get("dataset"), run.data.digest if run.data else None],
        "objective": run.raw_spec.get("objective"),
        "method": run.raw_spec.get("method"),
        "training": [settings.get(name) for name in ("precision", "maxSequenceLength", "seed")],
        **({"adapter": adapter.revision} if adapter else {}),
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return Path(run.paths.job) / "reference" / key


def _store(attempt: Attempt, path: Path, logps: Logps) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.save(content, logps)
    attempt.publish_file(path, content.getvalue())


def _compute_block(
    get_sequence: Callable[[int], PackedSequence],
    block: Sequence[int],
    context: ObjectiveContext,
    strategy: TrainingStrategy,
    compute_logps: SequenceLogpsHook,
) -> Logps:
    logps = torch.zeros(len(block), dtype=torch.float64, device=context.device)
    size = context.plan.micro_batch_size
    has_prefix = context.spec.method.type == "Prefix"
    with untrained_model(strategy, has_prefix) as model:
        for members in sampler.split_into_micro_batches(range(len(block)), size):
            micro_batch = collate([get_sequence(block[i]) for i in members], context.flatten)
            logps[members] = compute_logps(model, micro_batch, len(members)).logps.double()
    # One rank computed each sequence; on the others it is zero.
    dist.all_reduce(logps)
    return np.asarray(logps.float().cpu().numpy())
