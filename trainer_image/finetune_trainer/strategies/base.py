"""What every strategy is given and what it offers: the few verbs that the loop knows.

All strategies average gradients over the ranks, so the loop scales its loss by the number of ranks:
what is minimised is the mean over the global batch, whatever the world size, the accumulation or
the strategy.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from finetune_api.finetunejob import Method, Training
from finetune_api.run import Strategy


@dataclass(frozen=True)
class StrategyConfig:
    """What a strategy needs to know."""

    strategy: Strategy
    method: Method
    training: Training
    device: torch.device
    learning_rate: float
    micro_batch_size: int
    offload: bool
    autocast: bool
    scores: bool = False
    """Whether the model is a reward model, which gives a number and no tokens."""
    kept_whole: int = 0
    """ZeRO-3 keeps weights of at most so many elements whole between uses: norms and biases."""


@dataclass(frozen=True)
class Fragment:
    """A run of the elements of one named tensor, flattened row by row."""

    values: torch.Tensor
    """One dimension; a view of what the rank trains with."""
    start: int = 0
    """Index of its first element in the whole tensor."""
    replicated: bool = True
    """Whether every rank holds the same run, which one of them has to write."""


StateDict = dict[str, Fragment]
"""Fragments by name, `<what>/<weight>`; every rank has its own."""


class TrainingStrategy(Protocol):
    """A wrapped model with its optimizer."""

    model: Any
    """What is called for the forward pass."""
    name: str
    """Class of the wrapped model."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add this micro-batch's gradients."""

    def accumulate(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Surrounds forward and backward of a micro-batch; the last one of a step syncs."""

    def step(self, learning_rate: float) -> float:
        """Clip, update and clear; returns the gradients' global L2 norm before clipping, which is
        infinite or no number where nothing was updated."""

    @property
    def skipped(self) -> int:
        """Steps that this attempt left out because fp16 gradients overflowed."""

    def full_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every trained weight in fp32, gathered. A collective: all ranks must exhaust it."""

    def state(self) -> StateDict:
        """What a resumed run needs of this rank, as views of live memory. A collective."""

    def restored(self, state: StateDict) -> None:
        """Go on from these views, which have been overwritten. A collective."""

    @property
    def bare(self) -> Any:
        """The model inside the wrapper, with its adapters."""

    def close(self) -> None:
        """Let go of memory and hooks."""


def decoder_layers(model: Any) -> list[Any]:
    """The transformer blocks, by the class names that the architecture declares."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = set(inner._no_split_modules or ())
    layers = [module for module in inner.modules() if type(module).__name__ in names]
    if not layers:
        raise ValueError(f"{type(inner).__name__} declares no decoder layers to shard")
    return layers


def trainable_parameters(model: Any) -> Iterator[tuple[str, Any]]:
    """Names and tensors of the weights that are trained."""
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
