"""Which layers of a model an adapter changes.

A name in `targetModules` is the end of a module's path, as users know it from PEFT. In a
mixture-of-experts model only attention has linear layers that may be adapted: the experts are
three-dimensional weights, which `method.moe.experts` stands for, and a router that learns to send
tokens elsewhere is no longer the router that the experts were trained with.
"""

from collections.abc import Sequence
from typing import Any

import torch

from finetune_trainer.methods.moe import is_moe
from finetune_trainer.runtime.errors import UserError

ALL_LINEAR = "all-linear"
KEYS_AND_VALUES = ("k_proj", "v_proj", "key", "value", "k_lin", "v_lin")
FUSED_ATTENTION = ("query_key_value", "qkv_proj", "c_attn", "Wqkv", "qkv", "kv_proj")
FEED_FORWARD = ("down_proj", "dense_4h_to_h", "mlp.c_proj", "fc2", "fc_out", "w2", "proj_2")
"""Usual names of the last layer of a feed-forward block."""


def is_linear(module: Any) -> bool:
    """Whether an adapter can be put beside the module; GPT-2 has Conv1D for Linear."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D)


def is_transposed(model: Any, layers: Sequence[str]) -> bool:
    """Whether the layers store their weights [in, out], as those of GPT-2 do."""
    return bool(layers) and type(model.get_submodule(layers[0])).__name__ == "Conv1D"


def linear_layers(model: Any) -> list[str]:
    """Full names of the layers that may be adapted: every linear one but the head."""
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if is_linear(module)]
    inner = getattr(model, "base_model_prefix", "")
    kept = [
        name
        for name in names
        if model.get_submodule(name) is not head and (name.startswith(f"{inner}.") or not inner)
    ]
    if is_moe(model.config):
        return [name for name in kept if "attn" in name or "attention" in name]
    return kept


def select_layers(model: Any, wanted: Sequence[str], field: str) -> list[str]:
    """Full names of the layers that `wanted` means.

    Raises UserError UnknownTargetModule where a name fits no layer; `field` is where it stands.
    """
    layers = linear_layers(model)
    if ALL_LINEAR in wanted:
        return layers
    unknown = [name for name in wanted if not any(matches_suffix(layer, name) for layer in layers)]
    if unknown:
        raise UserError(
            "UnknownTargetModule",
            f"{field} names {', '.join(unknown)}, which no layer of this model is called.",
            f"Use some of: {_short_names(layers)}.",
        )
    return _matching_layers(layers, wanted)


def select_ia3_layers(
    model: Any, wanted: Sequence[str], feed_forward: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Layers that IA3 scales, and those of them whose input is scaled (Liu et al. 2022, 3.3).

    Nothing wanted means keys, values and the last layer of each feed-forward block; where an
    architecture computes queries, keys and values in one layer, all three are scaled.
    """
    if wanted:
        layers = select_layers(model, wanted, "method.ia3.targetModules")
        inputs = (
            select_layers(model, feed_forward, "method.ia3.feedforwardModules")
            if feed_forward
            else _matching_layers(layers, FEED_FORWARD)
        )
        return layers, [name for name in inputs if name in layers]
    layers = linear_layers(model)
    attention = _matching_layers(layers, KEYS_AND_VALUES) or _matching_layers(
        layers, FUSED_ATTENTION
    )
    inputs = _matching_layers(layers, FEED_FORWARD)
    if not attention:
        raise UserError(
            "UnknownTargetModule",
            "Keys and values of this model have unusual names, so IA3 cannot find them.",
            f"Name the layers in method.ia3.targetModules, some of: {_short_names(layers)}",
        )
    return attention + inputs, inputs


def matches_suffix(layer: str, name: str) -> bool:
    """Whether a full name ends with whole parts of a path."""
    return layer == name or layer.endswith(f".{name}")


def _matching_layers(layers: Sequence[str], names: Sequence[str]) -> list[str]:
    return [layer for layer in layers if any(matches_suffix(layer, name) for name in names)]


def _short_names(layers: Sequence[str]) -> str:
    return ", ".join(sorted({layer.rsplit(".", 1)[-1] for layer in layers}))
