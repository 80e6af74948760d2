"""DeepSpeed ZeRO: optimizer states (1), gradients (2) and weights (3) sharded.

Source: Rajbhandari et al. 2020 (arXiv 1910.02054).
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from finetune_api.run import Strategy

from finetune_trainer.strategies.base import Spread, trained
from finetune_trainer.strategies.optimizers import make_optimizer, set_learning_rate

ZERO_STAGES: dict[str, int] = {"ZeRO1": 1, "ZeRO2": 2, "ZeRO3": 3}


def deepspeed_config(spread: Spread) -> dict[str, Any]:
    """The engine's settings; adapters are fp32 already and need no mixed precision."""
    stage = ZERO_STAGES[spread.strategy]
    zero: dict[str, Any] = {"stage": stage, "contiguous_gradients": True}
    if spread.device.type == "cuda":
        zero["overlap_comm"] = True
    return {
        "train_micro_batch_size_per_gpu": spread.micro_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": spread.training.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": spread.method.type == "Full" and spread.training.precision == "bf16"},
        "steps_per_print": 1_000_000_000,
    }


class ZeroSharded:
    """DeepSpeed ZeRO: optimizer (1), gradients (2) and weights (3) sharded."""

    def __init__(self, model: Any, spread: Spread) -> None:
        import deepspeed

        if spread.strategy != "ZeRO3":
            model = model.to(spread.device)
        self.model, *_ = deepspeed.initialize(
            model=model,
            optimizer=make_optimizer(model, spread),
            config=deepspeed_config(spread),
            dist_init_required=False,
        )
        self.name = type(self.model).__name__
        self._lora = spread.method.type == "LoRA"

    @contextlib.contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """Tell the engine which micro-batch ends the step; the last one of an epoch may have
        fewer than the others."""
        self.model.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: torch.Tensor) -> None:
        """Add gradients."""
        self.model.backward(loss)

    def step(self, learning_rate: float) -> float:
        """Clip, update, clear: the engine does all three."""
        set_learning_rate(self.model.optimizer, learning_rate)
        self.model.step()
        return float(self.model.get_global_grad_norm())

    def full_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Gather the optimizer's fp32 copy of one weight at a time."""
        from deepspeed.utils import safe_get_full_fp32_param

        for name, weight in trained(self.model.module):
            yield name, safe_get_full_fp32_param(weight).detach()

    def save(self, folder: Path) -> None:
        """Every rank writes its partition."""
        self.model.save_checkpoint(
            str(folder), tag="zero", save_latest=False, exclude_frozen_parameters=self._lora
        )

    def load(self, folder: Path) -> None:
        """Every rank reads its partition."""
        path, _ = self.model.load_checkpoint(
            str(folder), tag="zero", load_module_strict=not self._lora
        )
        if path is None:
            raise FileNotFoundError(f"no DeepSpeed checkpoint in {folder}")

    @property
    def bare(self) -> Any:
        """The model inside the engine."""
        return self.model.module

    def close(self) -> None:
        """Remove the engine's hooks."""
        self.model.destroy()


def prepare_communication(spread_strategy: Strategy, device: str) -> None:
    """What must be said before a process group exists."""
    if spread_strategy in ZERO_STAGES:
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        if device == "cpu":
            # Its only operation on CPUs would be compiled on first use; gloo does the same.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
