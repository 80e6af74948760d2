"""The layers of a model that an adapter changes.

An entry of `targetModules` is the end of a module's path, as in PEFT. In a mixture-of-experts model
only the linear layers of attention can be targets: the experts are three-dimensional weights, which
`method.moe.experts` selects, and training the router would send tokens to other experts than those
that were trained on them.
"""

from collections.abc import Sequence
from typing import Any

import torch

from finetune_trainer.methods.image_models import language_model_prefix
from finetune_trainer.methods.moe import is_moe
from finetune_trainer.runtime.errors import UserError

ALL_LINEAR = "all-linear"
KEYS_AND_VALUES = ("k_proj", "v_proj", "key", "value", "k_lin", "v_lin")
FUSED_ATTENTION = ("query_key_value", "qkv_proj", "c_attn", "Wqkv", "qkv", "kv_proj")
FEED_FORWARD = ("down_proj", "dense_4h_to_h", "mlp.c_proj", "fc2", "fc_out", "w2", "proj_2")
"""Usual names of the last layer of a feed-forward block."""


def is_linear(module: Any) -> bool:
    """Whether the module can have an adapter; GPT-2 uses Conv1D instead of Linear."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D)


def is_transposed(model: Any, layers: Sequence[str]) -> bool:
    """Whether the layers store their weights as [in, out], as those of GPT-2 do."""
    return bool(layers) and type(model.get_submodule(layers[0])).__name__ == "Conv1D"


def linear_layers(model: Any) -> list[str]:
    """Full names of the layers that can be targets: all linear ones except for the head and the
    vision tower."""
    head, prefix = model.get_output_embeddings(), language_model_prefix(model)
    names = [name for name, module in model.named_modules() if is_linear(module)]
    inner = getattr(model, "base_model_prefix", "")
    # The text model of Llama 4 has no module of the name that it declares.
    prefix = prefix or (f"{inner}." if inner and hasattr(model, inner) else "")
    layers = [
        name for name in names if model.get_submodule(name) is not head and name.startswith(prefix)
    ]
    if is_moe(model.config):
        return [name for name in layers if "attn" in name or "attention" in name]
    return layers


def select_layers(model: Any, targets: Sequence[str], field: str) -> list[str]:
    """Full names of the layers that `targets` selects.

    `field` is the path of `targets` in the spec, for the message. Raises UserError
    UnknownTargetModule where an entry matches no layer.
    """
    layers = linear_layers(model)
    if ALL_LINEAR in targets:
        return layers
    unknown = [name for name in targets if not any(matches_suffix(layer, name) for layer in layers)]
    if unknown:
        raise UserError(
            "UnknownTargetModule",
            f"{field} names {', '.join(unknown)}, but no layer of this model has such a name.",
            f"Use some of: {short_names(layers)}.",
        )
    return matching_layers(layers, targets)


def select_ia3_layers(
    model: Any, targets: Sequence[str], feedforward: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Layers that IA3 scales, and those among them whose input it scales (Liu et al. 2022, arXiv
    2205.05638, section 3.3).

    Empty `targets` select keys, values and the last layer of each feed-forward block. Where an
    architecture computes queries, keys and values in one layer, all three are scaled.
    """
    if targets:
        layers = select_layers(model, targets, "method.ia3.targetModules")
        inputs = (
            select_layers(model, feedforward, "method.ia3.feedforwardModules")
            if feedforward
            else matching_layers(layers, FEED_FORWARD)
        )
        return layers, [name for name in inputs if name in layers]
    layers = linear_layers(model)
    attention = matching_layers(layers, KEYS_AND_VALUES) or matching_layers(layers, FUSED_ATTENTION)
    inputs = matching_layers(layers, FEED_FORWARD)
    if not attention:
        raise UserError(
            "UnknownTargetModule",
            "Keys and values of this model have unusual names, so IA3 cannot find them.",
            f"Name the layers in method.ia3.targetModules, some of: {short_names(layers)}",
        )
    return attention + inputs, inputs


def matches_suffix(layer: str, name: str) -> bool:
    """Whether the path of a layer ends with `name`, at a boundary between its parts."""
    return layer == name or layer.endswith(f".{name}")


def matching_layers(layers: Sequence[str], names: Sequence[str]) -> list[str]:
    """The layers that some of the names select."""
    return [layer for layer in layers if any(matches_suffix(layer, name) for name in names)]


def short_names(layers: Sequence[str]) -> str:
    """The last parts of the layers' paths, for a message."""
    return ", ".join(sorted({layer.rsplit(".", 1)[-1] for layer in layers}))
