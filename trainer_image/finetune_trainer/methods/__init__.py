"""Fine-tuning methods: what is trained, all weights or adapters on a frozen base.

Read `base_model` (loads the snapshot) and then `adapters` (PEFT's configuration of each method).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from finetune_api.combinations import resolve_switch
from finetune_api.finetunejob import FineTuneJobSpec, Method
from finetune_api.method import without_adapter_dropout
from finetune_api.objective import DROPOUT_OBJECTIVES

from finetune_trainer.methods.adapters import add_adapters
from finetune_trainer.methods.auto_precision import decide_precision, require_decided
from finetune_trainer.methods.base_model import (
    attention_kernel,
    load_base_model,
    make_meta_model,
    saved_dtype,
)
from finetune_trainer.methods.continued_adapter import adapter_folder, load_adapter_weights
from finetune_trainer.methods.dropout import disable_dropout
from finetune_trainer.methods.gradient_checkpointing import enable_gradient_checkpointing
from finetune_trainer.methods.image_models import freeze_vision_tower
from finetune_trainer.methods.modules_to_save import with_shared_weights
from finetune_trainer.methods.new_tokens import add_token_rows, added_token_ids
from finetune_trainer.methods.partial_output import has_untrained_tensors, save_partial_output
from finetune_trainer.methods.precision import DTYPES, computes_in_autocast, weight_dtype
from finetune_trainer.methods.prefix_tuning import prefix_state_dict
from finetune_trainer.methods.quantization import quantization_config
from finetune_trainer.sources.adapter_files import ADAPTER_WEIGHTS

__all__ = [
    "DTYPES",
    "adapter_folder",
    "add_token_rows",
    "added_token_ids",
    "apply_method",
    "attention_kernel",
    "computes_in_autocast",
    "decide_precision",
    "load_base_model",
    "make_meta_model",
    "quantization_config",
    "require_decided",
    "save_trained_weights",
    "saved_dtype",
    "weight_dtype",
]


def apply_method(
    model: Any,
    spec: FineTuneJobSpec,
    total_steps: int,
    new_tokens: Sequence[int] = (),
    adapter: Path | None = None,
) -> Any:
    """The model with the method's adapters, or with all weights trainable (Full), in train mode.

    `new_tokens`: ids of model.tokenizer.specialTokens; the model has embedding rows for them.
    `adapter`: folder of the adapter from which training continues.
    """
    model.config.get_text_config().use_cache = False
    method = spec.method
    if spec.objective not in DROPOUT_OBJECTIVES:
        disable_dropout(model)
        method = without_adapter_dropout(method)
    if resolve_switch(spec.to_wire(), "gradientCheckpointing"):
        enable_gradient_checkpointing(model, spec.training.selective_checkpointing)
    if method.type == "Full":
        freeze_vision_tower(model)
    else:
        model = add_adapters(model, method, total_steps, new_tokens)
        if adapter:
            load_adapter_weights(model, adapter)
    model.train()
    return model


def save_trained_weights(
    model: Any, weights: dict[str, torch.Tensor], method: Method, folder: Path
) -> None:
    """Write an adapter folder, or a model folder (Full), from gathered weights.

    Where a Full job does not train all tensors, only the trained weights are written.
    """
    if method.type == "Full" and has_untrained_tensors(model):
        save_partial_output(weights, folder)
        return
    if method.type == "Full":
        model.save_pretrained(folder, state_dict=weights, max_shard_size="5GB")
        return
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    if method.type == "Prefix":
        adapter = prefix_state_dict(model, weights)
    else:
        state_dict = with_shared_weights(model, weights)
        adapter = get_peft_model_state_dict(
            model, state_dict=state_dict, save_embedding_layers=False
        )
    tensors = {name: tensor.contiguous() for name, tensor in adapter.items()}
    folder.mkdir(parents=True, exist_ok=True)
    model.peft_config["default"].save_pretrained(folder)
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
