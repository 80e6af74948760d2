"""Adapters beside a frozen base, by PEFT."""

from typing import Any

import torch
from finetune_api.finetunejob import LoRA

from finetune_trainer.stage import UserError


def add_adapters(model: Any, lora: LoRA) -> Any:
    """Low-rank adapters in fp32 on the named linear layers (Hu et al. 2021, section 4)."""
    from peft import LoraConfig, get_peft_model

    named = lora.target_modules
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if named == ["all-linear"] else named,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config, autocast_adapter_dtype=True)
    except ValueError as error:
        if "arget modules" not in str(error):
            raise
        linear = {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        raise UserError(
            "UnknownTargetModule",
            f"method.lora.targetModules {named} names no layer of this model.",
            f"Use all-linear, or some of: {', '.join(sorted(linear))}.",
        ) from error
