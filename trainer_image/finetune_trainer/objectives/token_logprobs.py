"""How likely the policy finds each token of an answer, at the temperature of sampling.

What is sampled at a temperature must be learnt at it: dividing the logits by it makes the
probabilities those that the answers were drawn with.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from finetune_trainer.objectives.collate import MicroBatch
from finetune_trainer.objectives.fused_cross_entropy import chunked


@dataclass(frozen=True)
class TokenLikelihood:
    """Of the answers' tokens, in the order of `batch.targets`."""

    logps: torch.Tensor
    """fp32 [n]: log-probability of each token in nats."""
    entropies: torch.Tensor
    """fp32 [n]: entropy of the distribution that each was drawn from, in nats; no gradients."""


class Policy:
    """Hooks the output head so that it sees the answers' positions only, and none while answers
    are sampled. Call `remove` when done."""

    def __init__(self, model: Any, temperature: float, device: torch.device) -> None:
        """`model` is a causal language model of transformers, with or without adapters."""
        self._selected: torch.Tensor | None = None
        self._temperature = temperature
        self._device = device
        self._hook = model.get_output_embeddings().register_forward_pre_hook(self._select)

    def _select(self, head: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._selected is None:
            return None
        hidden = inputs[0]
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, self._selected),)

    def __call__(self, model: Any, batch: MicroBatch) -> TokenLikelihood:
        """`model` is the hooked model or what wraps it; its parameters decide the precision."""
        self._selected = batch.selected.to(self._device)
        try:
            logits = model(
                input_ids=batch.input_ids.to(self._device),
                position_ids=batch.position_ids.to(self._device),
                use_cache=False,
            ).logits
        finally:
            self._selected = None
        targets = batch.targets.to(logits.device)
        at_temperature = functools.partial(likelihood, temperature=self._temperature)
        return TokenLikelihood(*chunked(at_temperature, logits, targets))

    def remove(self) -> None:
        """Give the model its ordinary output head back."""
        self._hook.remove()


def likelihood(
    logits: torch.Tensor, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(target) and the entropy, both fp32 [n], for logits [n, vocabulary]."""
    logps = torch.log_softmax(logits.float() / temperature, dim=-1)
    chosen = logps.gather(-1, targets[:, None]).squeeze(-1)
    with torch.no_grad():
        entropies = torch.special.entr(logps.exp()).sum(-1)
    return chosen, entropies


@contextlib.contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """The base model: its adapters, and rows of new tokens, do nothing.

    PEFT's own switch also changes which weights want gradients, on which sharded engines rely.
    """
    switched = [module for module in model.modules() if hasattr(module, "_disable_adapters")]
    for module in switched:
        module._disable_adapters = True
    try:
        yield
    finally:
        for module in switched:
            module._disable_adapters = False
