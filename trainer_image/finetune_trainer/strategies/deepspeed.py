"""DeepSpeed ZeRO: optimizer states (1), gradients (2) and weights (3) sharded.

Source: Rajbhandari et al. 2020 (arXiv 1910.02054).
"""

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from finetune_api.run import Strategy

from finetune_trainer.runtime.errors import UserError
from finetune_trainer.strategies.base import StateDict, StrategyConfig, trainable_parameters
from finetune_trainer.strategies.deepspeed_state import refresh_engine, zero_state_dict
from finetune_trainer.strategies.loss_scale import GROWTH_INTERVAL, INITIAL_POWER
from finetune_trainer.strategies.optimizers import make_optimizer, set_learning_rate

ZERO_STAGES: dict[str, int] = {"ZeRO1": 1, "ZeRO2": 2, "ZeRO3": 3}


def deepspeed_config(spread: StrategyConfig) -> dict[str, Any]:
    """The engine's settings.

    With bf16 adapters are fp32 and need no mixed precision. With fp16 they become fp16 too and the
    engine keeps fp32 copies, because its loss scaling comes with these only.
    """
    precision = spread.training.precision
    return {
        "train_micro_batch_size_per_gpu": spread.micro_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": spread.training.max_grad_norm,
        "zero_optimization": zero_config(spread),
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's own AdamW for CPUs is compiled on the spot; PyTorch's is as fast.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": spread.method.type == "Full" and precision == "bf16"},
        "fp16": {
            "enabled": precision == "fp16",
            "initial_scale_power": INITIAL_POWER,
            "loss_scale_window": GROWTH_INTERVAL,
            "hysteresis": 1,
        },
        "steps_per_print": 1_000_000_000,
    }


def zero_config(spread: StrategyConfig) -> dict[str, Any]:
    """Which stage, and what lives in host memory."""
    stage = ZERO_STAGES[spread.strategy]
    zero: dict[str, Any] = {"stage": stage, "contiguous_gradients": True}
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = spread.kept_whole
    if spread.device.type == "cuda":
        zero["overlap_comm"] = True
    if spread.offload:
        host = {"device": "cpu", "pin_memory": spread.device.type == "cuda"}
        zero["offload_optimizer"] = host
        if stage == 3:
            zero["offload_param"] = host
    return zero


class DeepSpeedStrategy:
    """DeepSpeed ZeRO: optimizer (1), gradients (2) and weights (3) sharded."""

    def __init__(self, model: Any, spread: StrategyConfig) -> None:
        import deepspeed

        if spread.strategy == "ZeRO3":
            gather_experts_with_adapters(model)
        else:
            model = model.to(spread.device)
        if spread.training.precision == "fp16":
            cast_trainable_to_fp16(model)
        self.model, *_ = deepspeed.initialize(
            model=model,
            optimizer=make_optimizer(model, spread),
            config=deepspeed_config(spread),
            dist_init_required=False,
        )
        self._scaled = spread.training.precision == "fp16"
        if self._scaled:
            # A run whose every step overflows is ended by the loop, in words.
            self.model.optimizer.loss_scaler.raise_error_at_min_scale = False
        self.name = type(self.model).__name__

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
        before = self.model.skipped_steps
        self.model.step()
        if self.model.skipped_steps > before:
            return math.inf
        return float(self.model.get_global_grad_norm())

    @property
    def skipped(self) -> int:
        """Steps left out; the engine leaves them out in every format, but only fp16 recovers."""
        return int(self.model.skipped_steps) if self._scaled else 0

    def full_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Gather the optimizer's fp32 copy of one weight at a time."""
        from deepspeed.utils import safe_get_full_fp32_param

        for name, weight in trainable_parameters(self.model.module):
            yield name, safe_get_full_fp32_param(weight).detach()

    def state(self) -> StateDict:
        """The fp32 partitions of this rank."""
        return zero_state_dict(self.model)

    def restored(self, state: StateDict) -> None:
        """Copy the partitions to what the forward pass uses."""
        refresh_engine(self.model, state)

    @property
    def bare(self) -> Any:
        """The model inside the engine."""
        return self.model.module

    def close(self) -> None:
        """Remove the engine's hooks."""
        self.model.destroy()


def gather_experts_with_adapters(model: Any) -> None:
    """Gather the experts of a layer together with the adapters that change them.

    DeepSpeed notices by itself when a part of an adapter reads the weight of a layer, but not when
    PEFT puts another weight in its place.
    """
    from deepspeed.utils import set_z3_leaf_module

    for module in model.modules():
        if type(module).__name__ == "ParamWrapper":
            set_z3_leaf_module(module, True)


def cast_trainable_to_fp16(model: Any) -> None:
    """Adapters in fp16, which under ZeRO-3 are no shards yet."""
    for _, weight in trainable_parameters(model):
        if not hasattr(weight, "ds_id"):
            weight.data = weight.data.half()


def require_precision(spread: StrategyConfig) -> None:
    """Raise UserError PrecisionUnsupported where DeepSpeed does not know the number format."""
    if spread.strategy in ZERO_STAGES and spread.training.precision == "fp16":
        from deepspeed.accelerator import get_accelerator

        if not get_accelerator().is_fp16_supported():
            raise UserError(
                "PrecisionUnsupported",
                f"DeepSpeed has no fp16 on this device, so strategy {spread.strategy} cannot run.",
                "Set training.precision to bf16 or fp32, or compute.strategy to DDP or FSDP.",
            )


def prepare_communication(spread_strategy: Strategy, device: str) -> None:
    """What must be said before a process group exists."""
    if spread_strategy in ZERO_STAGES:
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        if device == "cpu":
            # Its only operation on CPUs would be compiled on first use; gloo does the same.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
