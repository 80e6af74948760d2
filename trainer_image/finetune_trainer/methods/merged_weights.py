"""The weights that result from each method, computed in fp32.

- LoRA adds s B A (Hu et al. 2021, arXiv 2106.09685, section 4.1).
- DoRA scales that sum to a learnt norm per output (Liu et al. 2024, arXiv 2402.09353, equation 5).
- AdaLoRA adds s B E A (Zhang et al. 2023, arXiv 2303.10512, equation 3).
- IA3 multiplies rows or columns (Liu et al. 2022, arXiv 2205.05638, section 3.3).
- A module of modulesToSave, and the head of a reward model, are replaced by their trained copies.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from finetune_api.finetunejob import Quantization

from finetune_trainer.methods.modules_to_save import ADAPTER, trained_copy
from finetune_trainer.methods.quantization import quantizable_layer_names, round_to_four_bits

BaseWeight = Callable[[torch.Tensor], torch.Tensor]
"""A base weight as the run trained with it, in fp32."""


@dataclass(frozen=True)
class FourBitBase:
    """How a QLoRA run rounded its base."""

    settings: Quantization
    dtype: torch.dtype
    """Dtype of the weights before they were rounded."""
    layers: Mapping[int, bool]
    """Address of each rounded weight, and whether it is stored as [in, out]."""

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """The dequantised weight, in fp32."""
        is_stored_transposed = self.layers[weight.data_ptr()]
        rounded = round_to_four_bits(
            weight.T if is_stored_transposed else weight, self.settings, self.dtype
        )
        return rounded.T if is_stored_transposed else rounded


def four_bit_base(model: Any, settings: Quantization, dtype: torch.dtype) -> FourBitBase:
    """For a base that is loaded without quantisation and has no adapters yet."""
    layers = [model.get_submodule(name) for name in quantizable_layer_names(model)]
    stored = {layer.weight.data_ptr(): type(layer).__name__ == "Conv1D" for layer in layers}
    return FourBitBase(settings, dtype, stored)


def merge_layers(
    adapted: Any, output_dtype: torch.dtype, rounded_base: FourBitBase | None = None
) -> None:
    """Change the base weights of a PEFT model in place, each rounded once to `output_dtype`.

    With `rounded_base`, every layer that QLoRA held in four bits gets its dequantised weight, with
    or without an adapter.
    """

    def base_weight(weight: torch.Tensor) -> torch.Tensor:
        if rounded_base and weight.data_ptr() in rounded_base.layers:
            return rounded_base(weight)
        return weight.float()

    done: set[int] = set()
    with torch.no_grad():
        for module in adapted.modules():
            for weight, merged in _merge_module(module, base_weight):
                weight.copy_(merged.to(output_dtype))
                done.add(weight.data_ptr())
        remaining = set(rounded_base.layers) - done if rounded_base else set[int]()
        for weight in adapted.parameters():
            if weight.data_ptr() in remaining:
                weight.copy_(base_weight(weight).to(output_dtype))


def _merge_module(module: Any, base_weight: BaseWeight) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Base weights that the module's adapter changes, each with its merged fp32 value."""
    from peft.tuners.adalora.layer import AdaLoraLayer
    from peft.tuners.ia3.layer import IA3Layer
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
    from peft.utils.other import ModulesToSaveWrapper

    if isinstance(module, ModulesToSaveWrapper):
        trained = dict(trained_copy(module).named_parameters())
        originals = module.original_module.named_parameters()
        return [(weight, trained[name].float()) for name, weight in originals]
    if isinstance(module, TrainableTokensLayer):
        weight = module.get_base_layer().weight
        return [(weight, _replace_token_rows(module, weight.float()))]
    if isinstance(module, IA3Layer):
        return _scale_ia3(module, base_weight)
    if isinstance(module, ParamWrapper):
        weight = module.get_param()
        return [(weight, weight.float() + _expert_delta(module))]
    if isinstance(module, AdaLoraLayer | LoraLayer):
        weight = module.get_base_layer().weight
        return [(weight, _add_lora(module, base_weight(weight)))]
    return []


def _add_lora(module: Any, weight: torch.Tensor) -> torch.Tensor:
    """LoRA, DoRA and AdaLoRA; `weight` is [out, in], or [in, out] for GPT-2's layers."""
    lora_a, lora_b = module.lora_A[ADAPTER], module.lora_B[ADAPTER]
    if hasattr(module, "ranknum"):
        lora_a = lora_a * module.lora_E[ADAPTER]
        scale = module.scaling[ADAPTER] / (module.ranknum[ADAPTER].float() + 1e-5)
    else:
        lora_a, lora_b, scale = lora_a.weight, lora_b.weight, module.scaling[ADAPTER]
    base = weight.T if module.fan_in_fan_out else weight
    merged = base + scale * (lora_b.float() @ lora_a.float())  # [out, rank] @ [rank, in]
    if ADAPTER in module.lora_magnitude_vector:
        magnitude = module.lora_magnitude_vector[ADAPTER].weight.float()  # [out]
        merged = merged * (magnitude / torch.linalg.norm(merged, dim=1)).unsqueeze(1)
    return merged.T if module.fan_in_fan_out else merged


def _expert_delta(module: Any) -> torch.Tensor:
    """s B_e A_e for every expert e, in the layout of the weight: [experts, out, in] or
    [experts, in, out]."""
    lora_a, lora_b = module.lora_A[ADAPTER].weight.float(), module.lora_B[ADAPTER].weight.float()
    lora_a = lora_a.reshape(module.num_experts, -1, lora_a.shape[-1])  # [experts, rank, in]
    lora_b = lora_b.reshape(lora_b.shape[0], -1, module.num_experts)  # [out, rank, experts]
    layout = "ore,eri->eoi" if module._did_swap_in_out_features else "ore,eri->eio"
    return module.scaling[ADAPTER] * torch.einsum(layout, lora_b, lora_a)


def _scale_ia3(module: Any, base_weight: BaseWeight) -> list[tuple[torch.Tensor, torch.Tensor]]:
    layer, scale = module.get_base_layer(), module.ia3_l[ADAPTER].float()
    factors = scale.T if module.fan_in_fan_out else scale
    merged = [(layer.weight, base_weight(layer.weight) * factors)]
    if layer.bias is not None and not module.is_feedforward:
        merged.append((layer.bias, layer.bias.float() * scale.flatten()))
    return merged


def _replace_token_rows(module: Any, weight: torch.Tensor) -> torch.Tensor:
    rows = module.token_indices[ADAPTER]
    weight[rows] = module.trainable_tokens_delta[ADAPTER].float()  # [tokens, width]
    return weight
