"""DeepSpeed ZeRO: optimizer states (stage 1), gradients (2) and weights (3) are sharded.

Source: Rajbhandari et al. 2020 (arXiv 1910.02054). `deepspeed_state` reads and writes what the
engine keeps for a checkpoint.
"""

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from finetune_api.protocol import Strategy

from finetune_trainer.runtime.errors import UserError
from finetune_trainer.strategies.base import StateDict, StrategyConfig, trainable_parameters
from finetune_trainer.strategies.deepspeed_state import refresh_engine, zero_state_dict
from finetune_trainer.strategies.loss_scale import GROWTH_INTERVAL, INITIAL_POWER
from finetune_trainer.strategies.optimizers import make_optimizer, set_learning_rate

ZERO_STAGES: dict[str, int] = {"ZeRO1": 1, "ZeRO2": 2, "ZeRO3": 3}


def deepspeed_config(config: StrategyConfig) -> dict[str, Any]:
    """The configuration of DeepSpeed's engine.

    In a bf16 run adapters are fp32 and need no mixed precision. In an fp16 run they are fp16 and
    the engine keeps fp32 copies, because it scales the loss only in its fp16 mode. Gradients of
    bf16 weights are reduced and added in fp32: with its 8 bits a sum of many micro-batches would
    lose the small ones.
    """
    precision = config.training.precision
    is_bf16 = config.method.type == "Full" and precision == "bf16"
    sums = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
    return {
        **(sums if is_bf16 else {}),
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.training.max_grad_norm,
        "zero_optimization": zero_config(config),
        "zero_allow_untested_optimizer": True,
        # DeepSpeed would compile its own AdamW for CPUs at first use; PyTorch's is as fast.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": is_bf16},
        "fp16": {
            "enabled": precision == "fp16",
            "initial_scale_power": INITIAL_POWER,
            "loss_scale_window": GROWTH_INTERVAL,
            "hysteresis": 1,
        },
        "steps_per_print": 1_000_000_000,
    }


def zero_config(config: StrategyConfig) -> dict[str, Any]:
    """The `zero_optimization` section: the stage, and what is offloaded to host memory."""
    stage = ZERO_STAGES[config.strategy]
    zero: dict[str, Any] = {"stage": stage, "contiguous_gradients": True}
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = config.persistence_threshold
    if config.device.type == "cuda":
        zero["overlap_comm"] = True
    if config.offload:
        host = {"device": "cpu", "pin_memory": config.device.type == "cuda"}
        zero["offload_optimizer"] = host
        if stage == 3:
            zero["offload_param"] = host
    return zero


class DeepSpeedStrategy:
    """The model inside a DeepSpeed engine of ZeRO stage 1, 2 or 3."""

    def __init__(self, model: Any, config: StrategyConfig) -> None:
        import deepspeed

        if config.strategy == "ZeRO3":
            gather_experts_with_adapters(model)
        else:
            model = model.to(config.device)
        self._is_fp16 = config.training.precision == "fp16"
        if self._is_fp16:
            cast_trainable_to_fp16(model)
        self.model, *_ = deepspeed.initialize(
            model=model,
            optimizer=make_optimizer(model, config),
            config=deepspeed_config(config),
            dist_init_required=False,
        )
        if self._is_fp16:
            # The loop ends a run whose steps all overflow, with a remedy for the user.
            self.model.optimizer.loss_scaler.raise_error_at_min_scale = False
        self.name = type(self.model).__name__

    @contextlib.contextmanager
    def accumulate(self, is_last: bool) -> Iterator[None]:
        """Mark the boundary of a step explicitly: the last step of an epoch may have fewer
        micro-batches than the others."""
        self.model.set_gradient_accumulation_boundary(is_last)
        yield

    def backward(self, loss: torch.Tensor) -> None:
        self.model.backward(loss)

    def step(self, learning_rate: float) -> float:
        """The engine clips, updates and zeroes."""
        set_learning_rate(self.model.optimizer, learning_rate)
        before = self.model.skipped_steps
        self.model.step()
        if self.model.skipped_steps > before:
            return math.inf
        return float(self.model.get_global_grad_norm())

    @property
    def skipped_steps(self) -> int:
        """The engine skips an overflowed step in every precision, but only an fp16 run recovers
        from it."""
        return int(self.model.skipped_steps) if self._is_fp16 else 0

    def gather_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Gather the optimizer's fp32 copy of one parameter at a time."""
        from deepspeed.utils import safe_get_full_fp32_param

        for name, weight in trainable_parameters(self.model.module):
            yield name, safe_get_full_fp32_param(weight).detach()

    def state_dict(self) -> StateDict:
        """This rank's fp32 partitions."""
        return zero_state_dict(self.model)

    def finish_restore(self, state: StateDict) -> None:
        """Copy the partitions to the weights that the forward pass uses."""
        refresh_engine(self.model, state)

    @property
    def unwrapped_model(self) -> Any:
        return self.model.module

    def close(self) -> None:
        """Remove the engine's hooks."""
        self.model.destroy()


def gather_experts_with_adapters(model: Any) -> None:
    """Let ZeRO-3 gather the experts of a layer together with the adapters that change them.

    DeepSpeed gathers a weight when a submodule of an adapter reads it, but not when PEFT's
    ParamWrapper replaces it by another tensor.
    """
    from deepspeed.utils import set_z3_leaf_module

    for module in model.modules():
        if type(module).__name__ == "ParamWrapper":
            set_z3_leaf_module(module, True)


def cast_trainable_to_fp16(model: Any) -> None:
    """Cast adapters to fp16; ZeRO-3 shards them later, so they are full tensors here."""
    for _, weight in trainable_parameters(model):
        if not hasattr(weight, "ds_id"):
            weight.data = weight.data.half()


def require_precision(config: StrategyConfig) -> None:
    """Raise UserError PrecisionUnsupported where DeepSpeed lacks the precision on this device."""
    if config.strategy in ZERO_STAGES and config.training.precision == "fp16":
        from deepspeed.accelerator import get_accelerator

        if not get_accelerator().is_fp16_supported():
            raise UserError(
                "PrecisionUnsupported",
                f"DeepSpeed has no fp16 on this device, so strategy {config.strategy} cannot run.",
                "Set training.precision to bf16 or fp32, or compute.strategy to DDP or FSDP.",
            )


def prepare_communication(strategy: Strategy, device: str) -> None:
    """Configure DeepSpeed; call it before the process group is initialised."""
    if strategy in ZERO_STAGES:
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        if device == "cpu":
            # DeepSpeed would compile its only CPU operation at first use; gloo does the same.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
