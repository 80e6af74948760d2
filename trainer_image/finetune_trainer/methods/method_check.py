"""Applies the job's method to a model without memory, before the job requests a device."""

from typing import Any

import torch
from finetune_api.finetunejob import Method

from finetune_trainer.methods.adapters import add_adapters
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.model_files import summarize_error, unsupported_model

TOTAL_STEPS = 100
"""Of the training, which prepare does not know yet; only AdaLoRA's schedule depends on it."""


def check_method(model: Any, method: Method, uri: str) -> Any:
    """The model with the method's adapters, for DoRA those of LoRA.

    `model` is on the device `meta`, and is changed. Raises UserError where the method's settings do
    not fit it.
    """
    if method.type == "Full":
        return model
    if method.type == "DoRA":
        # It adapts the same layers as LoRA, and needs the norms of weights, which have no values.
        method = method.model_copy(update={"type": "LoRA"})
    try:
        with torch.device("meta"):
            return add_adapters(model, method, TOTAL_STEPS)
    except UserError:
        raise
    except Exception as error:
        raise unsupported_model(
            uri,
            f"PEFT cannot adapt {type(model).__name__} by {method.type}: {summarize_error(error)}",
            "Name other layers in targetModules or modulesToSave, or use another method.",
        ) from None
