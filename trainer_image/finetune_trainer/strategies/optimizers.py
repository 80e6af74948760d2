"""Which optimizer changes the weights."""

from typing import Any

import torch
from finetune_api.finetunejob import Training

from finetune_trainer.strategies.base import Spread


def parameter_groups(model: Any, training: Training) -> list[dict[str, Any]]:
    """Trained weights in two groups: matrices decay, vectors (norms, biases) do not."""
    groups: dict[bool, list[Any]] = {True: [], False: []}
    for weight in model.parameters():
        if weight.requires_grad:
            # Under ZeRO-3 a weight is empty until it is gathered; ds_shape is its real shape.
            groups[len(getattr(weight, "ds_shape", weight.shape)) > 1].append(weight)
    return [
        {"params": weights, "weight_decay": training.weight_decay if matrices else 0.0}
        for matrices, weights in groups.items()
        if weights
    ]


def make_optimizer(model: Any, spread: Spread) -> torch.optim.AdamW:
    """AdamW with betas 0.9 and 0.999 (Loshchilov and Hutter 2019), fused kernels."""
    groups = parameter_groups(model, spread.training)
    return torch.optim.AdamW(groups, lr=spread.learning_rate, fused=True)


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    """The same rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
