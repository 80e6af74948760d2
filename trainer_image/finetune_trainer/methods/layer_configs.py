"""Sizes of each layer of a model; in some architectures (Gemma 4) layers differ."""

from typing import Any


def layer_configs(text: Any) -> list[Any]:
    """A config for each layer; `text` is the config of the language model."""
    if getattr(text, "is_heterogeneous", False):
        return list(text.per_layer_config)
    return [text] * text.num_hidden_layers


def head_width(layer: Any) -> int:
    """Width of one attention head of a layer."""
    return int(getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads)
