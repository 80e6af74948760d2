"""The start of a rank up to its first step: its imports, and the seconds that each part takes.

The ranks import all libraries before they meet, so that they do it at the same time. PEFT and
transformers import bitsandbytes wherever it is installed, which costs a second of CPU time; a rank
that quantises nothing blocks that import.
"""

import importlib
import json
import logging
import os
import sys
import time
from pathlib import Path

from finetune_api.combinations import BITSANDBYTES_OPTIMIZERS
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run import RunConfig

log = logging.getLogger("finetune")

START_TIME_ENV = "FINETUNE_BEGAN"
"""Holds the Unix time at which the first process of the pod was started."""
MODULES = ("training.loop", "checkpointing.final_output")
"""Modules of this package through which a rank imports everything else before its first step."""


class StartupTimer:
    """Seconds from the start of the pod's first process to the first step, by part."""

    def __init__(self) -> None:
        now = time.time()
        pod_start = float(os.environ.get(START_TIME_ENV, now))
        self.parts: dict[str, float] = {"launch": now - pod_start}
        self._marked_at = now

    def mark(self, part: str) -> None:
        """Add the time since the last mark to `part`."""
        now = time.time()
        self.parts[part] = self.parts.get(part, 0.0) + now - self._marked_at
        self._marked_at = now

    def finish(self, is_compiled: bool) -> dict[str, float]:
        """Seconds of all parts, to the millisecond; called after the first step, which compiles."""
        self.mark("first_step")
        if is_compiled:
            from torch._dynamo.utils import calculate_time_spent

            spent = calculate_time_spent().get("total_wall_time", 0.0)
            self.parts["compile"] = spent
            self.parts["first_step"] = max(0.0, self.parts["first_step"] - spent)
        parts = {part: round(seconds, 3) for part, seconds in self.parts.items()}
        fields = {f"{part}_seconds": seconds for part, seconds in parts.items()}
        log.info("First step finished", extra={"total_seconds": sum(parts.values()), **fields})
        return parts


def process_start_time() -> float:
    """Unix time at which this process was started, from the kernel."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")


def import_libraries(run: RunConfig) -> None:
    """Import what this run computes with, and keep out what it does not."""
    spec = run.spec
    if not uses_bitsandbytes(run, spec):
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


def uses_bitsandbytes(run: RunConfig, spec: FineTuneJobSpec) -> bool:
    """Whether the method, the optimizer or the weights of a model may need bitsandbytes."""
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
