"""What a resumed run needs of a rank, in a form that does not depend on the number of ranks.

Whatever is sharded, and however, a rank holds runs of elements of tensors that have a name and an
order: a weight, and what the optimizer keeps for it. A `Fragment` is one such run, as a view of
live memory: copying views is all that a save does to training, and copying into them is all that
a load does. Ranks that are more or fewer than those that saved ask for other runs of the same
tensors. Why not the libraries' own formats: docs/decisions/0005-checkpoint-format.md.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import distributed as dist

from finetune_trainer.strategies.base import Fragment, StateDict, trainable_parameters


def local_state_dict(model: Any, optimizer: torch.optim.Optimizer) -> StateDict:
    """Trained weights and optimizer states of a model whose optimizer holds them as they are.

    Makes the optimizer's states where it has not yet; changes no weight.
    """
    weights = list(trainable_parameters(model))
    init_optimizer_states(optimizer, [weight for _, weight in weights])
    state = {}
    for name, weight in weights:
        state[f"weight/{name}"] = local_fragment(weight)
        for what, value in optimizer.state[weight].items():
            state[f"{what}/{name}"] = local_fragment(value)
    return {name: part for name, part in state.items() if part.values.numel()}


def restore_scalars(model: Any, optimizer: torch.optim.Optimizer, state: StateDict) -> None:
    """Give the optimizer those of its states that are plain numbers and no tensors."""
    for name, weight in trainable_parameters(model):
        kept = optimizer.state[weight]
        for what, value in kept.items():
            if not isinstance(value, torch.Tensor):
                kept[what] = type(value)(state[f"{what}/{name}"].values.item())


def local_fragment(value: Any) -> Fragment:
    """This rank's run of a tensor, of a DTensor sharded by rows, or of a number."""
    from torch.distributed.tensor import DTensor, Shard

    if isinstance(value, (int, float)):
        return Fragment(torch.tensor([value], dtype=torch.float64))
    if not isinstance(value, DTensor):
        return Fragment(value.detach().view(-1))
    assert value.placements == (Shard(0),), value.placements
    rows = value.shape[0]
    # Shard(0) deals out rows as torch.chunk does: all ranks but the last ones have equally many.
    first = min(rows, -(-rows // dist.get_world_size()) * dist.get_rank())
    start = first * (value.numel() // rows)
    return Fragment(value.detach().to_local().view(-1), start, replicated=False)


def init_optimizer_states(
    optimizer: torch.optim.Optimizer, weights: Iterable[torch.Tensor]
) -> None:
    """Let an optimizer make the states that it would make in its first step.

    It steps once with zero gradients and rate 0, which leaves every weight as it is, and its count
    of steps is set back.
    """
    missing = [weight for weight in weights if not optimizer.state.get(weight)]
    if not missing:
        return
    lent = [weight for weight in missing if weight.grad is None]
    for weight in lent:
        weight.grad = torch.zeros_like(weight)
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for weight in lent:
        weight.grad = None
    for weight in missing:
        state = optimizer.state[weight]
        state["step"] = state["step"] * 0
