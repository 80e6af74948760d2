"""The output of a Full job that does not train all tensors of the model: only the trained weights.

A vision tower is frozen, and some architectures have buffers that are saved with the weights, such
as the bias of DeepSeek's router. Both are read from the base when the tuned model is loaded.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

TRAINED_WEIGHTS = "trained_weights.safetensors"
"""By the parameter names of the loaded model, which may differ from those in the base's files."""


def has_untrained_tensors(model: Any) -> bool:
    """Whether saving the model needs more tensors than the trained weights."""
    return any(not weight.requires_grad for weight in model.parameters()) or any(
        name not in module._non_persistent_buffers_set
        for module in model.modules()
        for name, _ in module.named_buffers(recurse=False)
    )


def save_partial_output(weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / TRAINED_WEIGHTS, metadata={"format": "pt"})


def load_partial_output(model: Any, folder: Path) -> None:
    """Overwrite weights of a base, in place, with the trained ones."""
    from safetensors import safe_open

    by_name = dict(model.named_parameters())
    with safe_open(folder / TRAINED_WEIGHTS, "pt") as tensors, torch.no_grad():
        for name in tensors.keys():  # noqa: SIM118 - not a dict
            by_name[name].copy_(tensors.get_tensor(name))
