"""Log-probabilities of the tokens of sampled completions, at the temperature of sampling.

Dividing the logits by the temperature gives the probabilities that the tokens were drawn with,
which the policy gradient needs.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from finetune_trainer.objectives.collate import MicroBatch
from finetune_trainer.objectives.fused_cross_entropy import apply_in_chunks


@dataclass(frozen=True)
class TokenLogps:
    """The completions' tokens of one forward pass, in the order of `MicroBatch.labels`."""

    logps: torch.Tensor
    """fp32 [n]: log-probability of each token in nats."""
    entropies: torch.Tensor
    """fp32 [n]: entropy of the distribution of each token in nats; no gradients."""


class TokenLogpsHook:
    """Hooks the output head of a model: while this object is called, the head computes logits only
    at positions that have a label. Call `detach_from_model` when done."""

    def __init__(self, model: Any, temperature: float, device: torch.device) -> None:
        """`model` is a causal language model of transformers, with or without adapters."""
        self._label_positions: torch.Tensor | None = None
        self._temperature = temperature
        self._device = device
        head = model.get_output_embeddings()
        self._hook = head.register_forward_pre_hook(self._select_labelled)

    def _select_labelled(self, head: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Hidden states [n, width] of those [batch, length, width] in `inputs`."""
        if self._label_positions is None:
            return None
        hidden = inputs[0]
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, self._label_positions),)

    def __call__(self, model: Any, micro_batch: MicroBatch) -> TokenLogps:
        """`model` is the hooked model or what wraps it; its parameters decide the precision."""
        self._label_positions = micro_batch.label_positions.to(self._device)
        try:
            logits = model(
                input_ids=micro_batch.input_ids.to(self._device),
                position_ids=micro_batch.position_ids.to(self._device),
                use_cache=False,
            ).logits
        finally:
            self._label_positions = None
        labels = micro_batch.labels.to(logits.device)
        function = functools.partial(logps_and_entropies, temperature=self._temperature)
        return TokenLogps(*apply_in_chunks(function, logits, labels))

    def detach_from_model(self) -> None:
        self._hook.remove()


def logps_and_entropies(
    logits: torch.Tensor, labels: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(label) and the entropy in nats, both fp32 [n], for logits [n, vocabulary]."""
    all_logps = torch.log_softmax(logits.float() / temperature, dim=-1)
    logps = all_logps.gather(-1, labels[:, None]).squeeze(-1)
    with torch.no_grad():
        entropies = torch.special.entr(all_logps.exp()).sum(-1)
    return logps, entropies


@contextlib.contextmanager
def disable_adapters(model: Any) -> Iterator[None]:
    """Make the model its base model: adapters, and the embeddings of new tokens, are not applied.

    PEFT's own switch also changes which weights require gradients, on which sharding strategies
    depend.
    """
    modules = [module for module in model.modules() if hasattr(module, "_disable_adapters")]
    for module in modules:
        module._disable_adapters = True
    try:
        yield
    finally:
        for module in modules:
            module._disable_adapters = False
