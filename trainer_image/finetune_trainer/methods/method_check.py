"""Tries the job's method on a model without memory, before the job requests a device."""

from typing import Any

import torch
from finetune_api.finetunejob import Method

from finetune_trainer.methods.adapters import add_adapters
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.model_files import unsupported_model

TRIAL_STEPS = 100
"""Length of a run, which only AdaLoRA's schedule depends on."""


def check_method(model: Any, method: Method, uri: str) -> None:
    """Raise UserError where the method's settings do not fit the model.

    `model` is on the device `meta`, and cannot be used afterwards.
    """
    if method.type == "Full":
        return
    # DoRA differs from LoRA by norms of the weights, which these do not have.
    tried = method.model_copy(update={"type": "LoRA"}) if method.type == "DoRA" else method
    try:
        with torch.device("meta"):
            add_adapters(model, tried, TRIAL_STEPS)
    except UserError:
        raise
    except Exception as error:
        words = " ".join(str(error).split())[:300].rstrip(".")
        raise unsupported_model(
            uri,
            f"PEFT cannot adapt {type(model).__name__} by {method.type}: "
            f"{words or type(error).__name__}",
            "Name other layers in targetModules of the method, or use another method.",
        ) from None
