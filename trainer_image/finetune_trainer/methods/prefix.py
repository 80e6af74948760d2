"""Prefix tuning's result: keys and values of the virtual tokens, without what made them."""

from typing import Any

import torch


def prefix_state_dict(model: Any, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What PEFT loads a prefix from: fp32 [virtual tokens, layers * 2 * width].

    `weights` are the trained ones, gathered, by their names in `model`, whose own may be shards.
    """
    config = model.peft_config["default"]
    encoder = type(model.prompt_encoder["default"])(config)
    start = "prompt_encoder.default."
    own = {
        name.removeprefix(start): weight.float()
        for name, weight in weights.items()
        if name.startswith(start)
    }
    encoder.load_state_dict(own)
    with torch.no_grad():
        told = encoder(torch.arange(config.num_virtual_tokens))
    return {"prompt_embeddings": told.detach()}
