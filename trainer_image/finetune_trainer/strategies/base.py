"""The interface between a strategy and the training loop.

Every strategy averages gradients over the ranks, so the loop multiplies its loss by the world size.
The run then minimises the mean over the global batch, at any world size, with any number of
accumulation steps and under any strategy.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from finetune_api.finetunejob import Method, Training
from finetune_api.protocol import Strategy


@dataclass(frozen=True)
class StrategyConfig:
    """What a strategy must know of the run."""

    strategy: Strategy
    method: Method
    training: Training
    device: torch.device
    learning_rate: float
    micro_batch_size: int
    offload: bool
    """Whether the optimizer and, under ZeRO-3 and FSDP, the weights live in host memory."""
    autocast: bool
    """Whether the forward pass casts fp32 weights to the run's precision."""
    is_reward_model: bool = False
    """Whether the model outputs one score instead of logits over tokens."""
    persistence_threshold: int = 0
    """ZeRO-3 shards no weight with at most this number of elements, such as norms and biases."""


@dataclass(frozen=True)
class Fragment:
    """Consecutive elements of one named tensor, which is flattened row by row."""

    values: torch.Tensor
    """[elements]: a view of the memory that this rank trains with."""
    start: int = 0
    """Index of the first element in the full tensor."""
    is_replicated: bool = True
    """Whether every rank holds the same elements, so that only one of them must write them."""


StateDict = dict[str, Fragment]
"""Fragments of this rank by name, `<kind>/<parameter>`, such as `exp_avg/lm_head.weight`."""


class TrainingStrategy(Protocol):
    """A wrapped model together with its optimizer."""

    model: Any
    """The module to call for a forward pass."""
    name: str
    """Class name of the wrapped model."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of this micro-batch."""

    def accumulate(self, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        """Context for forward and backward of a micro-batch.

        Ranks exchange gradients on the last micro-batch of a step.
        """

    def step(self, learning_rate: float) -> float:
        """Clip gradients, update weights and zero gradients.

        Returns the global L2 norm of the gradients before clipping; it is infinite or NaN where
        the strategy skipped the update.
        """

    @property
    def skipped_steps(self) -> int:
        """Steps that this attempt skipped because gradients overflowed in fp16."""

    def gather_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and full fp32 tensors of the trainable parameters, one at a time.

        A collective: every rank must exhaust the iterator.
        """

    def state_dict(self) -> StateDict:
        """What a resumed run needs from this rank, as views of live memory. A collective."""

    def finish_restore(self, state: StateDict) -> None:
        """Update everything that derives from `state`, the views of `state_dict`, after the caller
        has overwritten their values. A collective."""

    @property
    def unwrapped_model(self) -> Any:
        """The model inside the wrapper, with its adapters."""

    def close(self) -> None:
        """Release memory and remove hooks."""


def decoder_layers(model: Any) -> list[Any]:
    """The transformer blocks, by the class names that the architecture declares."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = set(inner._no_split_modules or ())
    layers = [module for module in inner.modules() if type(module).__name__ in names]
    if not layers:
        raise ValueError(f"{type(inner).__name__} declares no decoder layers to shard")
    return layers


def trainable_parameters(model: Any) -> Iterator[tuple[str, Any]]:
    """Names and tensors of the parameters with requires_grad."""
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
