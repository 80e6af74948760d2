"""Floating-point operations that a training step needs, for model FLOP/s utilisation (MFU).

After Chowdhery et al. 2022 (PaLM, arXiv 2204.02311), appendix B: a weight costs one multiplication
and one addition per token in the forward pass and twice that in the backward pass, 6 in all.
Attention costs 12 L H Q T per token, with L layers, H heads of width Q, and T tokens to attend to.
Three terms are counted as this run computes them, not as if all weights were trained on all tokens:

- A frozen weight needs no gradient of its own, so it costs 4 (LoRA trains about 4 N per token).
- The output layer is computed for trained positions only.
- T is the length of the sample itself, because packed samples do not attend to each other.

Recomputed activations do not count. Of the experts of a layer only the chosen fraction counts.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from finetune_trainer.methods.image_models import language_modules
from finetune_trainer.methods.layer_configs import head_width, layer_configs
from finetune_trainer.methods.modules_to_save import saved_modules, trained_copy
from finetune_trainer.methods.moe import expert_count, experts_per_token


@dataclass(frozen=True)
class ModelFlops:
    """What a model costs, forward and backward."""

    per_token: float
    """FLOPs of a token in all layers, without attention scores."""
    per_head_position: float
    """FLOPs of a position in the output layer."""
    per_attended_pair: float
    """FLOPs of a token and another one that it may attend to, over all layers."""

    def count_step(self, tokens: float, head_positions: float, attended_pairs: float) -> float:
        """FLOPs of a step.

        `attended_pairs`: sum over all tokens of the length of their sample.
        """
        return (
            self.per_token * tokens
            + self.per_head_position * head_positions
            + self.per_attended_pair * attended_pairs
        )


def count_model_flops(model: Any) -> ModelFlops:
    """The costs of a model of transformers with its adapters; its weights may be shards."""
    text = model.config.get_text_config()
    head = trained_copy(model.get_output_embeddings())
    # The forward pass uses their copies instead.
    frozen = {id(wrapper.original_module) for _, wrapper in saved_modules(model)}
    widths = [layer.num_attention_heads * head_width(layer) for layer in layer_configs(text)]
    inner = [
        cost
        for module in language_modules(model)
        if module is not head
        and id(module) not in frozen
        and not isinstance(module, torch.nn.Embedding)
        for cost in _matrix_costs(module, text)
    ]
    return ModelFlops(
        per_token=sum(inner),
        per_head_position=sum(_matrix_costs(head, text)) if head is not None else 0.0,
        per_attended_pair=12.0 * sum(widths),
    )


def count_positions(batch: Any) -> tuple[int, int]:
    """Trained positions of a micro-batch, and the sum over its tokens of their sample's length."""
    micro_batch = getattr(batch, "micro_batch", batch)
    label_positions = getattr(micro_batch, "label_positions", ())
    return len(label_positions), int(batch.sample_lengths.sum())


def _matrix_costs(module: Any, text: Any) -> list[float]:
    """FLOPs per token of each matrix that the module itself holds."""
    costs = []
    for weight in module.parameters(recurse=False):
        # Under ZeRO-3 a weight is empty until it is gathered; ds_shape is its full shape.
        shape = tuple(getattr(weight, "ds_shape", weight.shape))
        is_packed = getattr(module, "quant_state", None) is not None
        if is_packed and weight is module.weight:
            # A tensor of packed four-bit weights; under FSDP only the layer knows their shape.
            shape = (module.out_features, module.in_features)
        if len(shape) > 1:
            per_weight = 6.0 if weight.requires_grad else 4.0
            costs.append(per_weight * prod(shape) * _used_fraction(shape, text))
    return costs


def _used_fraction(shape: tuple[int, ...], text: Any) -> float:
    """Fraction of a weight that computes a token: of stacked experts only the chosen ones."""
    is_stacked = len(shape) == 3 and shape[0] == expert_count(text)
    return experts_per_token(text) / shape[0] if is_stacked else 1.0
