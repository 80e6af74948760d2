"""Turns dropout off where an objective compares exact probabilities.

Architectures keep their rates in three places: in Dropout modules, in attributes of the modules
that call the function, and in the config that some modules read in every forward pass. The model's
own config is left alone, because it is saved with the trained weights.
"""

import copy
from typing import Any

from torch.nn.modules.dropout import _DropoutNd


def disable_dropout(model: Any) -> None:
    """Set every dropout rate of a transformers model to zero, also in train mode."""
    from transformers import PreTrainedModel

    config = _without_dropout(model.config)
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if _is_rate(name, value):
                setattr(module, name, 0.0)
        if not isinstance(module, PreTrainedModel) and vars(module).get("config") is model.config:
            module.config = config


def _without_dropout(config: Any) -> Any:
    changed = copy.copy(config)
    for name, value in list(vars(changed).items()):
        if _is_rate(name, value):
            setattr(changed, name, 0.0)
    return changed


def _is_rate(name: str, value: Any) -> bool:
    """Whether an attribute is a rate of dropout by its name: attn_pdrop, hidden_dropout,
    layerdrop."""
    return "drop" in name and isinstance(value, (int, float)) and not isinstance(value, bool)
