"""What each method makes of a weight, in fp32.

LoRA adds s B A (Hu et al. 2021, arXiv 2106.09685, section 4.1), DoRA scales that sum to a learnt
norm for each output (Liu et al. 2024, arXiv 2402.09353, equation 5), AdaLoRA adds s B E A (Zhang et
al. 2023, arXiv 2303.10512, equation 3), IA3 multiplies rows or columns (Liu et al. 2022, arXiv
2205.05638, section 3.3).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from finetune_api.finetunejob import Quantization

from finetune_trainer.methods.quantization import quantizable_layer_names, round_to_four_bits

ADAPTER = "default"


@dataclass(frozen=True)
class FourBitBase:
    """What the base of a QLoRA run was rounded to."""

    how: Quantization
    precision: torch.dtype
    """Number format that the weights had before."""
    layers: Mapping[int, bool]
    """Addresses of the weights that were rounded, and whether they are stored [in, out]."""

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as its bits have it, in fp32."""
        turned = self.layers[weight.data_ptr()]
        rounded = round_to_four_bits(weight.T if turned else weight, self.how, self.precision)
        return rounded.T if turned else rounded


def four_bit_base(model: Any, how: Quantization, precision: torch.dtype) -> FourBitBase:
    """The same for a base that is loaded in an ordinary format and has no adapters yet."""
    layers = [model.get_submodule(name) for name in quantizable_layer_names(model)]
    stored = {each.weight.data_ptr(): type(each).__name__ == "Conv1D" for each in layers}
    return FourBitBase(how, precision, stored)


def merge_layers(adapted: Any, saved: torch.dtype, rounded: FourBitBase | None = None) -> None:
    """Change the base weights of a PEFT model in place, each rounded once to `saved`.

    With `rounded`, every layer that QLoRA held in four bits becomes what these bits mean, whether
    it has an adapter or not.
    """

    def base(weight: torch.Tensor) -> torch.Tensor:
        if rounded and weight.data_ptr() in rounded.layers:
            return rounded(weight)
        return weight.float()

    done: set[int] = set()
    with torch.no_grad():
        for module in adapted.modules():
            for weight, merged in _merged(module, base):
                weight.copy_(merged.to(saved))
                done.add(weight.data_ptr())
        left = set(rounded.layers) - done if rounded else set[int]()
        for weight in adapted.parameters():
            if weight.data_ptr() in left:
                weight.copy_(base(weight).to(saved))


def _merged(module: Any, base: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Base weights that the module's adapter changes, each with what it becomes in fp32."""
    from peft.tuners.adalora.layer import AdaLoraLayer
    from peft.tuners.ia3.layer import IA3Layer
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

    if isinstance(module, TrainableTokensLayer):
        weight = module.get_base_layer().weight
        return [(weight, _with_rows(module, weight.float()))]
    if isinstance(module, IA3Layer):
        return _scaled(module, base)
    if isinstance(module, ParamWrapper):
        weight = module.get_param()
        return [(weight, weight.float() + _expert_delta(module))]
    if isinstance(module, AdaLoraLayer | LoraLayer):
        weight = module.get_base_layer().weight
        return [(weight, _added(module, base(weight)))]
    return []


def _added(module: Any, weight: torch.Tensor) -> torch.Tensor:
    """LoRA, DoRA and AdaLoRA; `weight` is [out, in], or [in, out] for GPT-2's layers."""
    low, high = module.lora_A[ADAPTER], module.lora_B[ADAPTER]
    if hasattr(module, "ranknum"):
        low = low * module.lora_E[ADAPTER]
        scale = module.scaling[ADAPTER] / (module.ranknum[ADAPTER].float() + 1e-5)
    else:
        low, high, scale = low.weight, high.weight, module.scaling[ADAPTER]
    turned = weight.T if module.fan_in_fan_out else weight
    total = turned + scale * (high.float() @ low.float())
    if ADAPTER in module.lora_magnitude_vector:
        learnt = module.lora_magnitude_vector[ADAPTER].weight.float()
        total = total * (learnt / torch.linalg.norm(total, dim=1)).unsqueeze(1)
    return total.T if module.fan_in_fan_out else total


def _expert_delta(module: Any) -> torch.Tensor:
    """s B_e A_e for every expert e, in the layout of the weight it belongs to."""
    low, high = module.lora_A[ADAPTER].weight.float(), module.lora_B[ADAPTER].weight.float()
    low = low.reshape(module.num_experts, -1, low.shape[-1])
    high = high.reshape(high.shape[0], -1, module.num_experts)
    layout = "ore,eri->eoi" if module._did_swap_in_out_features else "ore,eri->eio"
    return module.scaling[ADAPTER] * torch.einsum(layout, high, low)


def _scaled(module: Any, base: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    layer, scale = module.get_base_layer(), module.ia3_l[ADAPTER].float()
    turned = scale.T if module.fan_in_fan_out else scale
    changed = [(layer.weight, base(layer.weight) * turned)]
    if layer.bias is not None and not module.is_feedforward:
        changed.append((layer.bias, layer.bias.float() * scale.flatten()))
    return changed


def _with_rows(module: Any, weight: torch.Tensor) -> torch.Tensor:
    rows = module.token_indices[ADAPTER]
    weight[rows] = module.trainable_tokens_delta[ADAPTER].float()
    return weight
