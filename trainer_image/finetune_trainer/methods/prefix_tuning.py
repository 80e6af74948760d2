"""The result of prefix tuning: keys and values of the virtual tokens, without the encoder."""

from typing import Any

import torch


def prefix_state_dict(model: Any, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What PEFT loads a prefix from: fp32 [virtual tokens, layers * 2 * width].

    `weights`: gathered trainable parameters by name; the model's own may be shards.
    """
    config = model.peft_config["default"]
    encoder = type(model.prompt_encoder["default"])(config)
    prefix = "prompt_encoder.default."
    encoder_weights = {
        name.removeprefix(prefix): weight.float()
        for name, weight in weights.items()
        if name.startswith(prefix)
    }
    encoder.load_state_dict(encoder_weights)
    with torch.no_grad():
        embeddings = encoder(torch.arange(config.num_virtual_tokens))
    return {"prompt_embeddings": embeddings.detach()}
