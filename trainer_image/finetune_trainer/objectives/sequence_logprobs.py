"""How likely a model finds whole answers: the sum of the log-probabilities of a row's answer.

The same hook on the output head as in language modelling, so it works inside any wrapper. What is
only looked at, and not learnt from, is looked at without dropout and without gradients.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from finetune_trainer.objectives.collate import MicroBatch
from finetune_trainer.objectives.sft import AnswerLoss
from finetune_trainer.strategies import TrainingStrategy


@dataclass(frozen=True)
class Likelihood:
    """Of the rows of one forward pass."""

    logps: torch.Tensor
    """fp32 [rows]: log p(answer | prompt) in nats."""
    tokens: torch.Tensor
    """fp32 [rows]: tokens of each answer."""


class RowLikelihood:
    """Log-probabilities of the rows of a batch, none of them packed. Call `remove` when done."""

    def __init__(self, model: Any, device: torch.device) -> None:
        """`model` is a causal language model of transformers, with or without adapters."""
        self._loss = AnswerLoss(model)
        self._device = device

    def __call__(self, model: Any, batch: MicroBatch, rows: int) -> Likelihood:
        """`model` is the hooked model or what wraps it; `rows` may be 0."""
        losses = self._loss(model, batch, self._device)
        owners = batch.owners.to(losses.device, non_blocking=True)
        logps = torch.zeros(rows, device=losses.device).index_add(0, owners, -losses)
        # Counted on the host: a device would be waited for.
        tokens = torch.bincount(batch.owners, minlength=rows)[:rows]
        return Likelihood(logps, tokens.to(logps, non_blocking=True))

    def remove(self) -> None:
        """Give the model its ordinary output head back."""
        self._loss.remove()


@contextlib.contextmanager
def at_rest(model: Any) -> Iterator[None]:
    """No dropout and no gradients; `model` is what is called for the forward pass."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@contextlib.contextmanager
def untrained(engine: TrainingStrategy, prefix: bool) -> Iterator[Any]:
    """The engine's model as the base model; nothing may have been trained yet.

    Adapters change nothing before they are trained; a prefix does, so it is taken off.
    """
    off = engine.bare.disable_adapter() if prefix else contextlib.nullcontext()
    with engine.accumulate(last=False), at_rest(engine.model), off:
        yield engine.model
