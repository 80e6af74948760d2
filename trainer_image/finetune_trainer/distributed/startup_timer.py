"""How a rank comes to its first step: what it imports, and how long each part takes.

All libraries are imported before the ranks meet, so that they do it at the same time. PEFT and
transformers import bitsandbytes wherever it is installed, which costs a second of computing; a
rank that quantises nothing does without.
"""

import importlib
import json
import logging
import os
import sys
import time
from pathlib import Path

from finetune_api.combinations import BITSANDBYTES
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run import RunConfig

log = logging.getLogger("finetune")

BEGAN_ENV = "FINETUNE_BEGAN"
"""Unix time at which the first process of the pod was started."""
MODULES = ("training.loop", "checkpointing.final_output")
"""Modules of this package through which a rank imports everything else before its first step."""


class StartupTimer:
    """Seconds from the start of the pod's first process to the first step, by part."""

    def __init__(self) -> None:
        now = time.time()
        began = float(os.environ.get(BEGAN_ENV, now))
        self.parts: dict[str, float] = {"launch": now - began}
        self._last = now

    def mark(self, part: str) -> None:
        """What was done since the last mark."""
        now = time.time()
        self.parts[part] = self.parts.get(part, 0.0) + now - self._last
        self._last = now

    def first_step(self, compiled: bool) -> dict[str, float]:
        """All parts, rounded to milliseconds; compiling happens within the first step."""
        self.mark("first_step")
        if compiled:
            from torch._dynamo.utils import calculate_time_spent

            spent = calculate_time_spent().get("total_wall_time", 0.0)
            self.parts["compile"] = spent
            self.parts["first_step"] = max(0.0, self.parts["first_step"] - spent)
        told = {part: round(seconds, 3) for part, seconds in self.parts.items()}
        parts = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in told.items())
        log.info("first step after %.1f s: %s", sum(told.values()), parts)
        return told


def process_began() -> float:
    """Unix time at which this process was started, from the kernel."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")


def import_libraries(run: RunConfig) -> None:
    """Import what this run computes with, and keep out what it does not."""
    spec = run.spec
    if not quantises(run, spec):
        # Stands for "not installed" wherever it is looked for.
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
    transformers = importlib.import_module("transformers")
    if run.model is not None:
        # Loads the architecture's own module; an unknown one is told when the model is loaded.
        getattr(transformers, run.model.architecture, None)
    if spec.method.type != "Full":
        importlib.import_module("peft")
    if run.plan is not None and run.plan.strategy.startswith("ZeRO"):
        importlib.import_module("deepspeed")
    for module in MODULES:
        importlib.import_module(f"finetune_trainer.{module}")


def quantises(run: RunConfig, spec: FineTuneJobSpec) -> bool:
    """Whether anything of the run may be bitsandbytes'."""
    if spec.method.type == "QLoRA" or spec.training.optimizer in BITSANDBYTES:
        return True
    folders = [(run.paths.model_cache, run.model), (run.paths.reward_cache, run.reward)]
    return any(
        facts is not None and has_codes(Path(cache) / facts.folder) for cache, facts in folders
    )


def has_codes(model: Path) -> bool:
    """Whether a snapshot's config says that its weights are quantised."""
    try:
        return "quantization_config" in json.loads((model / "config.json").read_text())
    except (OSError, ValueError):
        return False
