"""Which optimizer changes the weights.

Only AdamW keeps states that ZeRO and FSDP can shard and hand to another number of ranks; see the
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

BETAS = (0.9, 0.999)
EPSILON = 1e-8
IA3_VECTORS = "ia3_l"
"""IA3's vectors, stored as matrices of one row or column. They begin at one, and decay would take
them to zero, where a layer gives nothing."""


def parameter_groups(model: Any, training: Training) -> list[dict[str, Any]]:
    """Trained weights in two groups: matrices decay, vectors (norms, biases) do not."""
    groups: dict[bool, list[Any]] = {True: [], False: []}
    for name, weight in trainable_parameters(model):
        # Under ZeRO-3 a weight is empty until it is gathered; ds_shape is its real shape.
        matrix = len(getattr(weight, "ds_shape", weight.shape)) > 1 and IA3_VECTORS not in name
        groups[matrix].append(weight)
    return [
        {"params": weights, "weight_decay": training.weight_decay if matrices else 0.0}
        for matrices, weights in groups.items()
        if weights
    ]


def make_optimizer(model: Any, spread: StrategyConfig) -> torch.optim.Optimizer:
    """The job's optimizer over the trained weights.

    AdamW has betas 0.9 and 0.999 (Loshchilov and Hutter 2019, arXiv 1711.05101) in every form.
    """
    groups = parameter_groups(model, spread.training)
    name = spread.training.optimizer
    if name == "AdamW":
        return torch.optim.AdamW(
            groups, lr=spread.learning_rate, betas=BETAS, eps=EPSILON, fused=True
        )
    if name == "Adafactor":
        return _adafactor(groups, spread.learning_rate)
    import bitsandbytes

    # On a CPU all memory is the host's, so there is nothing to page.
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
    kind = getattr(bitsandbytes.optim, name)
    made: torch.optim.Optimizer = kind(groups, lr=spread.learning_rate, betas=BETAS, eps=EPSILON)
    return made


def _adafactor(groups: list[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
    # PyTorch's own multiplies the rate by the size of the weights, and the second matrix of an
    # adapter starts at zero: it would hardly move. This one takes the rate as it is.
    from transformers.optimization import Adafactor

    made: torch.optim.Optimizer = Adafactor(
        groups, lr=learning_rate, scale_parameter=False, relative_step=False, warmup_init=False
    )
    return made


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    """The same rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def clip_and_update(
    weights: list[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    learning_rate: float,
    scale: LossScale | None,
    after: Callable[[bool], None] | None = None,
) -> float:
    """Clip, update and clear; returns the gradients' global L2 norm before clipping.

    `after` is called while the gradients are still there, with whether there was an update.

    Where it is not finite nothing is updated: with fp16 that step is left out, else the run ends.
    """
    if scale:
        scale.unscale(weights)
    total: Any = torch.nn.utils.clip_grad_norm_(weights, max_norm)
    norm = float(total.full_tensor() if hasattr(total, "full_tensor") else total)
    if scale:
        scale.update(math.isfinite(norm))
    if math.isfinite(norm):
        set_learning_rate(optimizer, learning_rate)
        optimizer.step()
    if after:
        after(math.isfinite(norm))
    optimizer.zero_grad(set_to_none=True)
    return norm
