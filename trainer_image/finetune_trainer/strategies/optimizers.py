"""The job's optimizer, gradient clipping and the update of a step.

Only AdamW keeps states that ZeRO and FSDP can shard and redistribute to another world size; see the
table of combinations.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from finetune_api.finetunejob import Training

from finetune_trainer.strategies.base import StrategyConfig, trainable_parameters
from finetune_trainer.strategies.loss_scale import LossScale

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""AdamW's defaults (Loshchilov and Hutter 2019, arXiv 1711.05101)."""
IA3_VECTORS = "ia3_l"
"""Part of the names of IA3's vectors, which are stored as matrices of one row or column. They start
at one, and weight decay would pull them to zero, where the layer's output vanishes."""


def parameter_groups(model: Any, training: Training) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices with weight decay, vectors (norms, biases)
    without."""
    groups: dict[bool, list[Any]] = {True: [], False: []}
    for name, weight in trainable_parameters(model):
        # Under ZeRO-3 a weight is empty until it is gathered; ds_shape is its full shape.
        shape = getattr(weight, "ds_shape", weight.shape)
        groups[len(shape) > 1 and IA3_VECTORS not in name].append(weight)
    return [
        {"params": weights, "weight_decay": training.weight_decay if has_decay else 0.0}
        for has_decay, weights in groups.items()
        if weights
    ]


def make_optimizer(model: Any, config: StrategyConfig) -> torch.optim.Optimizer:
    """The job's optimizer over the trainable parameters."""
    groups = parameter_groups(model, config.training)
    name = config.training.optimizer
    if name == "AdamW":
        return torch.optim.AdamW(
            groups, lr=config.learning_rate, fused=True, **adam_settings(config.training)
        )
    if name == "Adafactor":
        return _make_adafactor(groups, config.learning_rate)
    import bitsandbytes

    # On a CPU all memory is host memory, so there is nothing to page.
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
    optimizer_class = getattr(bitsandbytes.optim, name)
    optimizer: torch.optim.Optimizer = optimizer_class(
        groups, lr=config.learning_rate, **adam_settings(config.training)
    )
    return optimizer


def adam_settings(training: Training) -> dict[str, Any]:
    """Decays and epsilon of every variant of AdamW, by PyTorch's names."""

    def chosen(value: float | None, default: float) -> float:
        return default if value is None else value

    betas = (chosen(training.adam_beta1, BETA1), chosen(training.adam_beta2, BETA2))
    return {"betas": betas, "eps": chosen(training.adam_epsilon, EPSILON)}


def _make_adafactor(groups: list[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
    # PyTorch's Adafactor multiplies the learning rate by the RMS of the weight. The B matrix of an
    # adapter starts at zero, so it would hardly move. This one applies the learning rate as it is.
    from transformers.optimization import Adafactor

    optimizer: torch.optim.Optimizer = Adafactor(
        groups, lr=learning_rate, scale_parameter=False, relative_step=False, warmup_init=False
    )
    return optimizer


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def clip_and_update(
    weights: list[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    learning_rate: float,
    loss_scale: LossScale | None,
    after_update: Callable[[bool], None] | None = None,
) -> float:
    """Clip gradients, update weights and zero gradients; returns the global L2 norm before
    clipping.

    Where the norm is not finite no weight changes: an fp16 run skips the step, every other run
    ends. `after_update` is called before gradients are zeroed, with whether weights were updated.
    """
    if loss_scale:
        loss_scale.unscale(weights)
    total: Any = torch.nn.utils.clip_grad_norm_(weights, max_norm)
    norm = float(total.full_tensor() if hasattr(total, "full_tensor") else total)
    if loss_scale:
        loss_scale.update(math.isfinite(norm))
    if math.isfinite(norm):
        set_learning_rate(optimizer, learning_rate)
        optimizer.step()
    if after_update:
        after_update(math.isfinite(norm))
    optimizer.zero_grad(set_to_none=True)
    return norm
