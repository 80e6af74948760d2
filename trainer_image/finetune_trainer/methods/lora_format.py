"""LoRA computes in the dtype of the activations.

LoRA's two matrices are kept and updated in fp32. PEFT also computes with them in fp32: it casts the
input of every layer to fp32 and keeps that for the backward pass, which costs memory bandwidth and,
for a small model, a third of the memory. Casting the small matrices instead is what autocast does
for a linear layer (Micikevicius et al. 2018, arXiv 1710.03740, section 3.1).
"""

from typing import Any

import torch


class RoundedLinear(torch.nn.Linear):  # type: ignore[misc]
    """A linear layer whose fp32 weights are rounded to the dtype of the input."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features], in the input's dtype."""
        bias = self.bias if self.bias is None else self.bias.to(input.dtype)
        return torch.nn.functional.linear(input, self.weight.to(input.dtype), bias)


def match_activation_dtype(adapted: Any) -> None:
    """Let LoRA's matrices multiply activations in their dtype; in fp32 nothing changes."""
    from peft.tuners.lora import LoraLayer

    for layer in [each for each in adapted.modules() if isinstance(each, LoraLayer)]:
        layer.cast_input_dtype_enabled = False
        for matrices in (layer.lora_A, layer.lora_B):
            for name, linear in list(matrices.items()):
                rounded = RoundedLinear(
                    linear.in_features, linear.out_features, bias=False, device="meta"
                )
                rounded.weight = linear.weight
                matrices[name] = rounded
