"""LoRA in the number format of the activations.

LoRA's two matrices are kept and updated in fp32. PEFT computes with them in fp32 too: it turns the
input of every layer into fp32 and keeps that for the backward pass, which costs memory traffic and
a third of the memory of a small model. Rounding the matrices instead, which are small, is what
autocast does for a linear layer (Micikevicius et al. 2018, arXiv 1710.03740, section 3.1).
"""

from typing import Any

import torch


class RoundedLinear(torch.nn.Linear):  # type: ignore[misc]
    """Weights of fp32 that are rounded to the number format of what comes in."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input: [..., in_features]; the result has its number format."""
        return torch.nn.functional.linear(input, self.weight.to(input.dtype))


def match_activation_dtype(adapted: Any) -> None:
    """Let LoRA's matrices multiply activations as they come; in fp32 nothing changes."""
    from peft.tuners.lora import LoraLayer

    for layer in [each for each in adapted.modules() if isinstance(each, LoraLayer)]:
        layer.cast_input_dtype_enabled = False
        for parts in (layer.lora_A, layer.lora_B):
            for name, part in list(parts.items()):
                parts[name] = _rounded(part)


def _rounded(part: torch.nn.Linear) -> RoundedLinear:
    """The same layer with the same weight."""
    rounded = RoundedLinear(part.in_features, part.out_features, bias=False, device="meta")
    rounded.weight = part.weight
    return rounded
