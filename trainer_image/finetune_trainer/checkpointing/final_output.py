"""Writes output/, the trained weights that the evaluate and export stages read.

The folder is published with one rename: it is either complete or missing.
"""

import json
from pathlib import Path
from typing import Any

import torch
from finetune_api.run_config import RunConfig
from torch import distributed as dist

from finetune_trainer import methods
from finetune_trainer.checkpointing import checkpoint_folder
from finetune_trainer.distributed import collectives
from finetune_trainer.runtime import fsync
from finetune_trainer.runtime.fencing import Attempt
from finetune_trainer.strategies import TrainingStrategy


def write_output(run: RunConfig, model: Any, strategy: TrainingStrategy) -> None:
    """Gather the trained weights on rank 0 and publish output/: an adapter, or a full model.

    A collective. Raises RetryableError Fenced if a later attempt has replaced this one.
    """
    attempt, method = Attempt(Path(run.paths.job), run.attempt), run.spec.method
    dtype = torch.float32
    if method.type == "Full":
        dtype = methods.saved_dtype(Path(run.paths.model_cache) / run.require_model().folder)
    weights = {}
    for name, weight in strategy.gather_weights():
        if dist.get_rank() == 0:
            weights[name] = weight.to("cpu", dtype, copy=True)
    if dist.get_rank() == 0:
        partial = attempt.scratch / "output"
        with attempt.fencing_errors():
            methods.save_trained_weights(model, weights, method, partial)
            files = checkpoint_folder.hash_files(partial)
            (partial / "files.json").write_text(json.dumps({"files": files}, indent=1))
            fsync.fsync_tree(partial)
        attempt.publish(partial, attempt.job / "output")
    collectives.barrier()
