"""Modules of which LoRA trains all weights (`method.lora.modulesToSave`).

PEFT replaces such a module by a wrapper around the original, which stays frozen, and a copy, which
is trained. The copies are fp32, as adapters are, and compute with weights that are rounded to the
dtype of the original, so that the model computes the same once they are merged.

A weight that two modules share stays one weight. PEFT's `ensure_weight_tying` does the same only
for modules that are named embed_tokens or lm_head.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

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
from finetune_trainer.sources.adapter_files import ADAPTER_WEIGHTS

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
    _check_tied_weights(model, modules, selected)
    return selected


def _check_tied_weights(model: Any, modules: Sequence[str], selected: Sequence[str]) -> None:
    """Raise UserError where a weight of a selected module is also one of another module, which may
    have an adapter, or be outside the language model."""
    owners = {
        id(weight): name
        for name in selected
        for weight in model.get_submodule(name).parameters(recurse=False)
    }
    for name, module in model.named_modules():
        shared = [owners.get(id(weight)) for weight in module.parameters(recurse=False)]
        owner = next((each for each in shared if each), None)
        if name in selected or owner is None:
            continue
        both = " and ".join(each.rsplit(".", 1)[-1] for each in (owner, name))
        raise UserError(
            "TiedModule",
            f"{FIELD} names {owner} and not {name}, but the two share one weight.",
            f"Name both {both}, which are then trained as one weight, or neither."
            if name in modules
            else f"Name no module that matches {owner}.",
        )


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
    """Make the copies fp32, with one weight where the originals share one.

    The head of a reward model also computes in fp32.
    """
    copies: dict[int, torch.nn.Parameter] = {}
    reward_head = find_head(adapted.get_base_model())
    for _, wrapper in list(saved_modules(adapted)):
        original, trained = wrapper.original_module, trained_copy(wrapper)
        if type(original) is torch.nn.Linear:
            linear = torch.nn.Linear if wrapper is reward_head else RoundedLinear
            trained = linear(
                original.in_features,
                original.out_features,
                bias=original.bias is not None,
                device="meta",
            )
            wrapper.modules_to_save[ADAPTER] = trained
            if wrapper is reward_head:
                trained.register_forward_pre_hook(_cast_input)
        elif type(original) is torch.nn.Embedding:
            # The same as rounding its weight, without the sum of gradients in half precision.
            wrapper.register_forward_hook(_round_output)
        else:
            trained.forward = _compute_with_rounded_weights(wrapper, trained)
        with gather_parameters(original), torch.no_grad():
            for name, weight in original.named_parameters(recurse=False):
                if id(weight) not in copies:
                    copies[id(weight)] = torch.nn.Parameter(weight.to(torch.float32, copy=True))
                setattr(trained, name, copies[id(weight)])


def _cast_input(head: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].to(head.weight.dtype), *inputs[1:])


def _round_output(wrapper: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    return output.to(wrapper.original_module.weight.dtype)


def _compute_with_rounded_weights(wrapper: Any, trained: Any) -> Any:
    """The forward of a copy: that of its original, with the copy's weights in the original's dtype.

    It runs inside the copy, where FSDP and ZeRO-3 have gathered the weights, and calls a module
    without weights, which no wrapper of the model can find.
    """
    original = wrapper.original_module
    empty = {id(w): torch.empty_like(w, device="meta") for w in original.parameters()}
    layer = copy.deepcopy(original, {key: torch.nn.Parameter(w) for key, w in empty.items()})

    def forward(*args: Any, **kwargs: Any) -> Any:
        dtypes = {name: weight.dtype for name, weight in original.named_parameters()}
        tensors = dict(trained.named_buffers())
        for name, weight in trained.named_parameters():
            tensors[name] = weight.to(dtypes[name])
        return torch.func.functional_call(layer, tensors, args, kwargs)

    return forward


def with_shared_weights(model: Any, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The trained weights, with those that modules share under each of their names."""
    names = {id(weight): name for name, weight in model.named_parameters() if name in weights}
    shared = {
        name: weights[first].clone()
        for name, weight in model.named_parameters(remove_duplicate=False)
        if (first := names.get(id(weight), name)) != name
    }
    return {**weights, **shared}


def load_copies(adapted: Any, adapter: Path) -> None:
    """Set the copies of a loaded adapter to the fp32 weights in its folder, because PEFT rounds
    them to the dtype of the model."""
    weights: dict[str, torch.Tensor] = {}
    for name, wrapper in saved_modules(adapted):
        weights = weights or load_file(adapter / ADAPTER_WEIGHTS)
        for key, weight in trained_copy(wrapper).named_parameters():
            weight.data = weights[f"{name}.{key}"].to(weight.device)


def restore_originals(adapted: Any) -> None:
    """Put the originals in the place of the copies, once their weights are merged: they have the
    dtype of the model and are tied where its config ties them."""
    for _, wrapper in list(saved_modules(adapted)):
        wrapper.modules_to_save[ADAPTER] = wrapper.original_module
