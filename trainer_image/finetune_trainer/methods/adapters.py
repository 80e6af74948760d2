"""PEFT adapters on a frozen base; one function per method makes PEFT's configuration."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from finetune_api.finetunejob import IA3, AdaLoRA, LoRA, Method, MixtureOfExperts, Prefix

from finetune_trainer.methods.lora_format import match_activation_dtype
from finetune_trainer.methods.modules_to_save import (
    TIED_WARNING,
    select_modules,
    train_copies_in_fp32,
)
from finetune_trainer.methods.moe import expert_weight_names
from finetune_trainer.methods.reward_head import peft_task_type
from finetune_trainer.methods.target_modules import (
    is_transposed,
    select_ia3_layers,
    select_layers,
)

PREFIX_INIT_STD = 0.02
"""Standard deviation of a new prefix: the usual one of initial weights instead of PyTorch's 1."""
MAX_ALLOCATIONS = 100
"""Rank allocations of AdaLoRA, evenly spread over the steps in which ranks shrink."""


def add_adapters(
    model: Any, method: Method, total_steps: int, new_tokens: Sequence[int] = ()
) -> Any:
    """The model with adapters in fp32; all its other weights are frozen.

    `new_tokens`: ids whose rows of the embedding and of the head are trained as well. Raises
    UserError where the method's settings do not fit the model.
    """
    from peft import get_peft_model

    config = peft_config(model, method, total_steps, new_tokens)
    with warnings.catch_warnings():
        # The copies of a tied weight are tied by train_copies_in_fp32.
        warnings.filterwarnings("ignore", message=TIED_WARNING)
        adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
    if method.type == "Prefix" and not config.prefix_projection:
        encoder = adapted.prompt_encoder["default"]
        torch.nn.init.normal_(encoder.embedding.weight, std=PREFIX_INIT_STD)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    if method.type in ("LoRA", "QLoRA"):
        match_activation_dtype(adapted)
    train_copies_in_fp32(adapted)
    return adapted


def peft_config(
    model: Any, method: Method, total_steps: int, new_tokens: Sequence[int] = ()
) -> Any:
    """The method's settings as a PeftConfig."""
    if method.type == "IA3":
        return _ia3_config(model, method.ia3 or IA3())
    if method.type == "AdaLoRA":
        return _adalora_config(model, method.adalora or AdaLoRA(), total_steps)
    if method.type == "Prefix":
        return _prefix_config(model, method.prefix or Prefix())
    return _lora_config(model, method, new_tokens)


def _lora_config(model: Any, method: Method, new_tokens: Sequence[int]) -> Any:
    from peft import LoraConfig

    lora, experts = method.lora or LoRA(), (method.moe or MixtureOfExperts()).experts
    layers = select_layers(model, lora.target_modules, "method.lora.targetModules")
    saved = select_modules(model, lora.modules_to_save, layers, method.type == "QLoRA")
    token_rows = trainable_token_rows(model, new_tokens) if new_tokens else {}
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rank_stabilized,
        use_dora=method.type == "DoRA",
        target_modules=layers,
        fan_in_fan_out=is_transposed(model, layers),
        target_parameters=expert_weight_names(model) if experts else None,
        # A copy trains all rows.
        trainable_token_indices={n: rows for n, rows in token_rows.items() if n not in saved}
        or None,
        modules_to_save=saved or None,
        task_type=peft_task_type(model),
    )


def trainable_token_rows(model: Any, new_tokens: Sequence[int]) -> dict[str, list[int]]:
    """Row indices by the name of the embedding, and of the head where it is not tied to it."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = model.config.get_text_config().tie_word_embeddings
    layers = [embedding] if is_tied or head is None else [embedding, head]
    return {
        name: list(new_tokens)
        for name, module in model.named_modules()
        if any(module is layer for layer in layers)
    }


def _adalora_config(model: Any, adalora: AdaLoRA, total_steps: int) -> Any:
    from peft import AdaLoraConfig

    # A short run has at least one step that measures importances and one that allocates ranks.
    final = max(0, min(round(adalora.final_ratio * total_steps), total_steps - 2))
    warmup = min(round(adalora.warmup_ratio * total_steps), total_steps - final - 1)
    layers = select_layers(model, adalora.target_modules, "method.adalora.targetModules")
    return AdaLoraConfig(
        init_r=adalora.initial_rank,
        target_r=adalora.target_rank,
        lora_alpha=adalora.alpha,
        lora_dropout=adalora.dropout,
        target_modules=layers,
        fan_in_fan_out=is_transposed(model, layers),
        tinit=warmup,
        tfinal=final,
        total_step=total_steps,
        deltaT=max(1, (total_steps - final - warmup) // MAX_ALLOCATIONS),
        task_type=peft_task_type(model),
    )


def _ia3_config(model: Any, ia3: IA3) -> Any:
    from peft import IA3Config

    layers, feedforward = select_ia3_layers(model, ia3.target_modules, ia3.feedforward_modules)
    return IA3Config(
        target_modules=layers,
        feedforward_modules=feedforward,
        fan_in_fan_out=is_transposed(model, layers),
        task_type=peft_task_type(model),
    )


def _prefix_config(model: Any, prefix: Prefix) -> Any:
    from peft import PrefixTuningConfig

    return PrefixTuningConfig(
        num_virtual_tokens=prefix.virtual_tokens,
        prefix_projection=prefix.projection,
        encoder_hidden_size=model.config.get_text_config().hidden_size,
        task_type="CAUSAL_LM",
    )
