"""output/: what training leaves for evaluation and export, whole or not there."""

import json
from pathlib import Path
from typing import Any

import torch
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run import RunConfig
from torch import distributed as dist

from finetune_trainer import methods
from finetune_trainer.checkpointing import restore
from finetune_trainer.distributed import collectives
from finetune_trainer.runtime import fsync
from finetune_trainer.runtime.fencing import Attempt
from finetune_trainer.strategies import TrainingStrategy


def write_output(
    run: RunConfig, spec: FineTuneJobSpec, model: Any, engine: TrainingStrategy
) -> None:
    """Gather the trained weights and publish output/: an adapter, or a whole model."""
    assert run.model is not None
    attempt, adapted = Attempt(Path(run.paths.job), run.attempt), spec.method.type != "Full"
    dtype = torch.float32
    if not adapted:
        dtype = methods.saved_dtype(Path(run.paths.model_cache) / run.model.folder)
    weights = {}
    for name, weight in engine.full_weights():
        if dist.get_rank() == 0:
            weights[name] = weight.to("cpu", dtype, copy=True)
    if dist.get_rank() == 0:
        partial = attempt.scratch / "output"
        with attempt.guarded():
            methods.save_trained_weights(model, weights, spec.method, partial)
            files = restore.hash_files(partial)
            (partial / "files.json").write_text(json.dumps({"files": files}, indent=1))
            fsync.seal(partial)
        attempt.publish(partial, attempt.job / "output")
    collectives.barrier()
