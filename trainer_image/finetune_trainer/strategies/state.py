"""The state of a rank, for a checkpoint that any world size can read.

Under every strategy a rank holds consecutive elements of named tensors: weights, and the
optimizer's states for them. A `Fragment` is a view of them in live memory. A save copies from the
views and a restore copies into them. Ranks of another world size read other elements of the same
tensors. docs/decisions/0005-checkpoint-format.md explains why this is not the libraries'
own format.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import distributed as dist

from finetune_trainer.strategies.base import Fragment, StateDict, trainable_parameters


def local_state_dict(model: Any, optimizer: torch.optim.Optimizer) -> StateDict:
    """Trainable parameters and their optimizer states, for DDP and FSDP.

    Creates the optimizer's states where they do not exist yet; changes no weight.
    """
    weights = list(trainable_parameters(model))
    init_optimizer_states(optimizer, [weight for _, weight in weights])
    state = {}
    for name, weight in weights:
        state[f"weight/{name}"] = local_fragment(weight)
        for kind, value in optimizer.state[weight].items():
            state[f"{kind}/{name}"] = local_fragment(value)
    return {name: fragment for name, fragment in state.items() if fragment.values.numel()}


def restore_scalars(model: Any, optimizer: torch.optim.Optimizer, state: StateDict) -> None:
    """Copy those optimizer states that are Python numbers from `state`; tensors are views."""
    for name, weight in trainable_parameters(model):
        optimizer_state = optimizer.state[weight]
        for kind, value in optimizer_state.items():
            if not isinstance(value, torch.Tensor):
                number = state[f"{kind}/{name}"].values.item()
                optimizer_state[kind] = type(value)(number)


def local_fragment(value: Any) -> Fragment:
    """This rank's elements of a tensor, of a DTensor sharded by rows, or of a number."""
    from torch.distributed.tensor import DTensor, Shard

    if isinstance(value, (int, float)):
        return Fragment(torch.tensor([value], dtype=torch.float64))
    if not isinstance(value, DTensor):
        return Fragment(value.detach().view(-1))
    assert value.placements == (Shard(0),), value.placements
    rows = value.shape[0]
    # Shard(0) splits rows as torch.chunk does: every rank has ceil(rows / world_size) of them,
    # except for the last ranks, which have fewer or none.
    first_row = min(rows, -(-rows // dist.get_world_size()) * dist.get_rank())
    start = first_row * (value.numel() // rows)
    return Fragment(value.detach().to_local().view(-1), start, is_replicated=False)


def init_optimizer_states(
    optimizer: torch.optim.Optimizer, weights: Iterable[torch.Tensor]
) -> None:
    """Let an optimizer create the states that it would create in its first step.

    It steps once with zero gradients and learning rate 0, which changes no weight; then its step
    count is reset.
    """
    missing = [weight for weight in weights if not optimizer.state.get(weight)]
    if not missing:
        return
    without_grad = [weight for weight in missing if weight.grad is None]
    for weight in without_grad:
        weight.grad = torch.zeros_like(weight)
    learning_rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    for group, learning_rate in zip(optimizer.param_groups, learning_rates, strict=True):
        group["lr"] = learning_rate
    for weight in without_grad:
        weight.grad = None
    for weight in missing:
        state = optimizer.state[weight]
        state["step"] = state["step"] * 0
