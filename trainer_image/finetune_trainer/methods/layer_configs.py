"""Sizes of the layers of a model, which differ in some architectures (Gemma 4)."""

from typing import Any


def layer_configs(text: Any) -> list[Any]:
    """The config of every layer; `text` is that of a language model."""
    if getattr(text, "is_heterogeneous", False):
        return list(text.per_layer_config)
    return [text] * text.num_hidden_layers


def head_width(layer: Any) -> int:
    """Width of one attention head of a layer."""
    return int(getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads)
