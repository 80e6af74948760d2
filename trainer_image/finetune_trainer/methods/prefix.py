"""Prefix tuning's result: keys and values of the virtual tokens, without what made them."""

import copy
from typing import Any

import torch


def flat_prefix(model: Any, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What PEFT loads a prefix from: fp32 [virtual tokens, layers * 2 * width].

    `weights` are the trained ones, gathered, by their names in `model`, whose own may be shards.
    """
    encoder = copy.copy(model.prompt_encoder["default"])
    start = "prompt_encoder.default."
    own = {
        name.removeprefix(start): weight.float()
        for name, weight in weights.items()
        if name.startswith(start)
    }
    tokens = torch.arange(model.peft_config["default"].num_virtual_tokens)
    with torch.no_grad():
        told = torch.func.functional_call(encoder, own, (tokens,))
    return {"prompt_embeddings": told.detach()}
