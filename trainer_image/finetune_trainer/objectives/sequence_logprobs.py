"""Log-probabilities of whole completions: the sum of the logps of a sequence's trained tokens.

The hook on the output head is that of SFT, so it works inside every wrapper.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from finetune_trainer.objectives.collate import MicroBatch
from finetune_trainer.objectives.sft import OutputHeadLoss
from finetune_trainer.strategies import TrainingStrategy


@dataclass(frozen=True)
class SequenceLogps:
    """The completions of one forward pass."""

    logps: torch.Tensor
    """fp32 [sequences]: log p(completion | prompt) in nats."""
    tokens: torch.Tensor
    """fp32 [sequences]: tokens of each completion."""


class SequenceLogpsHook:
    """Hooks the output head of a model, and computes the logps of sequences of one sample each.

    Call `detach_from_model` when done.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        """`model` is a causal language model of transformers, with or without adapters."""
        self._loss = OutputHeadLoss(model)
        self._device = device

    def __call__(self, model: Any, micro_batch: MicroBatch, sequences: int) -> SequenceLogps:
        """`model` is the hooked model or what wraps it; `sequences`, the number of sequences in the
        micro-batch, may be 0."""
        losses = self._loss(model, micro_batch, self._device)
        index = micro_batch.sequence_index.to(losses.device, non_blocking=True)
        logps = torch.zeros(sequences, device=losses.device).index_add(0, index, -losses)
        # Counted on the CPU: on a GPU, bincount would wait for the forward pass.
        tokens = torch.bincount(micro_batch.sequence_index, minlength=sequences)[:sequences]
        return SequenceLogps(logps, tokens.to(logps, non_blocking=True))

    def detach_from_model(self) -> None:
        self._loss.detach_from_model()


def average_logps(logps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Mean logp of the tokens of each completion, from the sum and the number of tokens."""
    return logps / tokens.clamp(min=1)


@contextlib.contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """No dropout and no gradients; `model` is what is called for the forward pass."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@contextlib.contextmanager
def untrained_model(strategy: TrainingStrategy, has_prefix: bool) -> Iterator[Any]:
    """The wrapped model as the base model, in evaluation mode; nothing may be trained yet.

    Untrained adapters change nothing. An untrained prefix does, so it is disabled.
    """
    disabled = (
        strategy.unwrapped_model.disable_adapter() if has_prefix else contextlib.nullcontext()
    )
    with strategy.accumulate(is_last=False), evaluation_mode(strategy.model), disabled:
        yield strategy.model
