"""What a rank imports before it meets the others, so that all ranks import at the same time.

PEFT and transformers import bitsandbytes wherever it is installed, which costs a second of CPU
time; a rank that quantises nothing blocks that import.
"""

import importlib
import json
import sys
from pathlib import Path

from finetune_api.combinations import BITSANDBYTES_OPTIMIZERS
from finetune_api.run_config import RunConfig

MODULES = ("training.loop", "checkpointing.final_output")
"""Modules of this package through which a rank imports everything else before its first step."""


def import_libraries(run: RunConfig) -> None:
    """Import what this run computes with, and keep out what it does not."""
    spec = run.spec
    if not uses_bitsandbytes(run):
        # An import of it then fails as if it were not installed.
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
    transformers = importlib.import_module("transformers")
    if run.model is not None:
        # Loads the architecture's own module; an unknown one fails when the model is loaded.
        getattr(transformers, run.model.architecture, None)
    if spec.method.type != "Full":
        importlib.import_module("peft")
    if run.plan is not None and run.plan.strategy.startswith("ZeRO"):
        importlib.import_module("deepspeed")
    for module in MODULES:
        importlib.import_module(f"finetune_trainer.{module}")


def uses_bitsandbytes(run: RunConfig) -> bool:
    """Whether the method, the optimizer or the weights of a model may need bitsandbytes."""
    spec = run.spec
    if spec.method.type == "QLoRA" or spec.training.optimizer in BITSANDBYTES_OPTIMIZERS:
        return True
    folders = [(run.paths.model_cache, run.model), (run.paths.reward_cache, run.reward)]
    return any(
        facts is not None and has_quantized_weights(Path(cache) / facts.folder)
        for cache, facts in folders
    )


def has_quantized_weights(model: Path) -> bool:
    """Whether a snapshot's config says that its weights are quantised."""
    try:
        return "quantization_config" in json.loads((model / "config.json").read_text())
    except (OSError, ValueError):
        return False
