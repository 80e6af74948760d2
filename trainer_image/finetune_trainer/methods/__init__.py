"""What is trained: every weight, or adapters beside frozen ones."""

from pathlib import Path
from typing import Any

import torch
from finetune_api.finetunejob import LoRA, Method, Training

from finetune_trainer.methods.adapters import add_adapters
from finetune_trainer.methods.loading import attention_kernel, empty_model, load_model, saved_dtype
from finetune_trainer.methods.precision import DTYPES, computes_in_autocast, weight_dtype

__all__ = [
    "DTYPES",
    "attention_kernel",
    "computes_in_autocast",
    "empty_model",
    "load_model",
    "prepare_method",
    "save_trained",
    "saved_dtype",
    "weight_dtype",
]


def prepare_method(model: Any, method: Method, training: Training) -> Any:
    """The model ready to be wrapped: adapters added or everything trainable."""
    model.config.use_cache = False
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if method.type == "LoRA":
        model = add_adapters(model, method.lora or LoRA())
    model.train()
    return model


def save_trained(
    model: Any, weights: dict[str, torch.Tensor], method: Method, folder: Path
) -> None:
    """Write an adapter folder (LoRA) or a model folder (Full) from gathered weights."""
    if method.type == "LoRA":
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        adapter = get_peft_model_state_dict(model, state_dict=weights)
        tensors = {name: tensor.contiguous() for name, tensor in adapter.items()}
        folder.mkdir(parents=True, exist_ok=True)
        model.peft_config["default"].save_pretrained(folder)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    else:
        model.save_pretrained(folder, state_dict=weights, max_shard_size="5GB")
