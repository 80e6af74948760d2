"""What a Full job writes of a model that is not trained as a whole: the trained weights alone.

A vision tower is frozen, and some architectures hold tensors that are no weights, such as the bias
of DeepSeek's router. Both are taken from the base where the tuned model is loaded.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

TRAINED_WEIGHTS = "trained_weights.safetensors"
"""The trained weights by their names in memory."""


def is_trained_as_a_whole(model: Any) -> bool:
    """Whether the trained weights are all that a folder of the model holds."""
    return all(weight.requires_grad for weight in model.parameters()) and not any(
        name not in module._non_persistent_buffers_set
        for module in model.modules()
        for name, _ in module.named_buffers(recurse=False)
    )


def save_partial_output(weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write the trained weights."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / TRAINED_WEIGHTS, metadata={"format": "pt"})


def load_partial_output(model: Any, folder: Path) -> None:
    """Replace weights of a base by those of `save_partial_output`."""
    from safetensors import safe_open

    by_name = dict(model.named_parameters())
    with safe_open(folder / TRAINED_WEIGHTS, "pt") as tensors, torch.no_grad():
        for name in tensors.keys():  # noqa: SIM118 - not a dict
            by_name[name].copy_(tensors.get_tensor(name))
