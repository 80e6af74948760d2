"""Floating-point operations that a step of a transformer needs, for model FLOP/s utilisation.

After Chowdhery et al. 2022 (PaLM, arXiv 2204.02311), appendix B: a weight costs a multiplication
and an addition for a token in the forward pass, and twice that in the backward pass, 6 in all; and
attention costs 12 L H Q T for a token, with L layers, H heads of width Q, and T tokens to look at.
Three things are counted as they are and not as if everything was trained on everything:
- a frozen weight needs no gradient of its own, so it costs 4 (LoRA trains about 4 N for a token);
- the output layer is computed for trained positions only;
- T is the length of the example itself: packed examples do not see each other.
What is computed again to save memory does not count. Of a layer of experts the chosen share does.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from finetune_trainer.methods.moe import expert_count, experts_per_token


@dataclass(frozen=True)
class ModelFlops:
    """What a model costs."""

    token: float
    """FLOPs for a token in all layers, attention's own left out."""
    head: float
    """FLOPs for a position at the output layer."""
    attended: float
    """FLOPs for a pair of a token and one that it may look at, over all layers."""

    def of(self, tokens: float, heads: float, attended: float) -> float:
        """FLOPs of a step, forward and backward.

        `attended`: sum over the tokens of the length of their example.
        """
        return self.token * tokens + self.head * heads + self.attended * attended


def count_model_flops(model: Any) -> ModelFlops:
    """Count a model of transformers, with its adapters; sharded ones too."""
    text = model.config.get_text_config()
    head = model.get_output_embeddings()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    inner = [
        cost
        for module in model.modules()
        if module is not head and not isinstance(module, torch.nn.Embedding)
        for cost in _costs(module, text)
    ]
    return ModelFlops(
        token=sum(inner),
        head=sum(_costs(head, text)) if head is not None else 0.0,
        attended=12.0 * text.num_hidden_layers * text.num_attention_heads * width,
    )


def count_positions(batch: Any) -> tuple[int, int]:
    """Trained positions of a batch, and the sum over its tokens of their examples' lengths."""
    rows = batch.rows if hasattr(getattr(batch, "rows", None), "selected") else batch
    return len(getattr(rows, "selected", ())), int(batch.lengths.sum())


def _costs(module: Any, text: Any) -> list[float]:
    """FLOPs for a token of each matrix that a module itself holds."""
    found = []
    for weight in module.parameters(recurse=False):
        # Under ZeRO-3 a weight is empty until it is gathered; four-bit ones are packed.
        shape = tuple(getattr(weight, "ds_shape", weight.shape))
        packed = getattr(module, "quant_state", None) is not None
        if packed and weight is module.weight:
            # Under FSDP the layer alone knows that they are.
            shape = (module.out_features, module.in_features)
        if len(shape) > 1:
            per_weight = 6.0 if weight.requires_grad else 4.0
            found.append(per_weight * prod(shape) * _share(shape, text))
    return found


def _share(shape: tuple[int, ...], text: Any) -> float:
    """Share of a weight that a token meets: of stacked experts only the chosen ones."""
    stacked = len(shape) == 3 and shape[0] == expert_count(text)
    return experts_per_token(text) / shape[0] if stacked else 1.0
