"""Modules of which LoRA trains all weights (`method.lora.modulesToSave`).

PEFT replaces such a module by a wrapper around the original, which stays frozen, and a copy, which
is trained. The copies are fp32, as adapters are, and the rest of the model computes in the dtype of
the base: a head rounds its weight to it, every other copy rounds its output.

A weight that two modules share stays one weight. PEFT's `ensure_weight_tying` does the same only
for modules that are named embed_tokens or lm_head.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from finetune_trainer.methods.image_models import language_model_prefix
from finetune_trainer.methods.lora_format import RoundedLinear
from finetune_trainer.methods.reward_head import find_head
from finetune_trainer.methods.target_modules import (
    is_linear,
    linear_layers,
    matches_suffix,
    matching_layers,
    short_names,
)
from finetune_trainer.methods.zero3_gather import gather_parameters
from finetune_trainer.runtime.errors import UserError

FIELD = "method.lora.modulesToSave"
ADAPTER = "default"
"""PEFT's name of the only adapter."""
TIED_WARNING = r"Model has `tie_word_embeddings=True` and a tied layer"
"""Start of PEFT's warning, as a pattern, about a tied weight that it would copy twice."""


def select_modules(
    model: Any, names: Sequence[str], adapted: Sequence[str], is_quantized: bool
) -> list[str]:
    """Full names of the modules that `names` selects.

    `adapted`: full names of the layers with adapters. `is_quantized`: whether QLoRA holds the
    linear layers in four bits. Raises UserError UnknownTargetModule where a name matches no module
    whose weights can be trained, and TiedModule where it matches one of two that share a weight.
    """
    blocked = {*adapted, *(linear_layers(model) if is_quantized else ())}
    modules = [name for name in _trainable_modules(model) if name not in blocked]
    unknown = [name for name in names if not any(matches_suffix(each, name) for each in modules)]
    if unknown:
        quantized = ", and QLoRA's linear layers are quantised" if is_quantized else ""
        raise UserError(
            "UnknownTargetModule",
            f"{FIELD} names {', '.join(unknown)}, but this model has no such embedding, head, norm "
            f"or linear layer without an adapter{quantized}.",
            f"Use some of: {short_names(modules)}.",
        )
    selected = matching_layers(modules, names)
    weights = {id(model.get_submodule(name).weight): name for name in selected}
    for name in set(modules) - set(selected):
        if owner := weights.get(id(model.get_submodule(name).weight)):
            raise UserError(
                "TiedModule",
                f"{FIELD} names {owner} and not {name}, but the two share one weight.",
                f"Name both {' and '.join(each.rsplit('.', 1)[-1] for each in (owner, name))}, "
                "which are then trained as one weight, or neither.",
            )
    return selected


def _trainable_modules(model: Any) -> list[str]:
    """Full names of embeddings, norms, heads, and of linear layers that can be targets."""
    prefix, linear = language_model_prefix(model), {*linear_layers(model)}
    heads = [head for head in (model.get_output_embeddings(), find_head(model)) if head is not None]
    return [
        name
        for name, module in model.named_modules()
        if name in linear
        or any(module is head for head in heads)
        or (name.startswith(prefix) and _is_embedding_or_norm(module))
    ]


def _is_embedding_or_norm(module: Any) -> bool:
    is_norm = "norm" in type(module).__name__.lower() and not is_linear(module)
    has_weight = isinstance(getattr(module, "weight", None), torch.nn.Parameter)
    return has_weight and (is_norm or isinstance(module, torch.nn.Embedding))


def saved_modules(model: Any) -> Iterator[tuple[str, Any]]:
    """Names and wrappers of the modules that PEFT has copied."""
    from peft.utils.other import ModulesToSaveWrapper

    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            yield name, module


def trained_copy(module: Any) -> Any:
    """The copy that is trained instead of a module, or the module itself."""
    return module.modules_to_save[ADAPTER] if hasattr(module, "modules_to_save") else module


def train_copies_in_fp32(adapted: Any) -> None:
    """Make the copies fp32, with one weight where the originals share one; a reward model's head
    is left to `add_trainable_head`."""
    copies: dict[int, torch.nn.Parameter] = {}
    for _, wrapper in list(saved_modules(adapted)):
        if wrapper is find_head(adapted.get_base_model()):
            continue
        original, copy = wrapper.original_module, trained_copy(wrapper)
        if type(original) is torch.nn.Linear:
            copy = RoundedLinear(
                original.in_features,
                original.out_features,
                bias=original.bias is not None,
                device="meta",
            )
            wrapper.modules_to_save[ADAPTER] = copy
        else:
            _round_outputs(wrapper, copy)
        with gather_parameters(original), torch.no_grad():
            for name, weight in original.named_parameters(recurse=False):
                in_fp32 = torch.nn.Parameter(weight.to(torch.float32, copy=True))
                setattr(copy, name, copies.setdefault(id(weight), in_fp32))


def _round_outputs(wrapper: Any, copy: Any) -> None:
    """Let a copy compute in fp32, and round what it returns to the dtype of the original."""

    def cast_inputs(copy: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        dtype = copy.weight.dtype
        return tuple(each.to(dtype) if _is_float(each) else each for each in inputs)

    def cast_output(wrapper: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return output.to(wrapper.original_module.weight.dtype)

    copy.register_forward_pre_hook(cast_inputs)
    wrapper.register_forward_hook(cast_output)


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def with_shared_weights(model: Any, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The trained weights, with those that modules share under each of their names."""
    names = {id(weight): name for name, weight in model.named_parameters() if name in weights}
    shared = {
        name: weights[first].clone()
        for name, weight in model.named_parameters(remove_duplicate=False)
        if (first := names.get(id(weight), name)) != name
    }
    return {**weights, **shared}


def restore_originals(adapted: Any) -> None:
    """Put the originals in the place of the copies, once their weights are merged: they have the
    dtype of the model and are tied where its config ties them."""
    for _, wrapper in list(saved_modules(adapted)):
        wrapper.modules_to_save[ADAPTER] = wrapper.original_module
