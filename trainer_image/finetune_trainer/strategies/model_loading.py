"""Loads the base model in the form that the strategy needs.

With a sharding strategy no host ever holds a full copy of the weights per rank.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from finetune_api.finetunejob import RopeScaling
from torch import distributed as dist

from finetune_trainer import methods
from finetune_trainer.strategies.base import StrategyConfig
from finetune_trainer.strategies.deepspeed import deepspeed_config


def load_model(
    config: StrategyConfig,
    folder: Path,
    dtype: torch.dtype,
    attention: str,
    rope: RopeScaling | None = None,
    new_tokens: Sequence[int] = (),
) -> Any:
    """The base model, with embedding rows for `new_tokens`, ready for the method's adapters.

    - ZeRO-3 loads each weight straight into its shards. A four-bit base is the exception: every
      rank loads it and DeepSpeed shards it later, because shards cannot be quantised.
    - FSDP loads on rank 0 only; FSDPStrategy broadcasts the weights when it wraps the model.
    - Under every other strategy each rank loads straight to its device.
    """
    seed = config.training.seed if config.is_reward_model else None
    quantization = methods.quantization_config(config.method, dtype, config.strategy)
    changes: dict[str, Any] = {"rope": rope, "quantization": quantization}
    if config.strategy == "FSDP" and dist.get_rank() > 0:
        model = methods.make_meta_model(folder, dtype, attention, config.is_reward_model, **changes)
    elif config.strategy == "FSDP":
        model = methods.load_base_model(folder, dtype, attention, reward_head_seed=seed, **changes)
    elif config.strategy == "ZeRO3" and not quantization:
        with zero3_loading(config):
            model = methods.load_base_model(folder, dtype, attention, None, seed, **changes)
            methods.add_token_rows(model, new_tokens)
        return model
    else:
        model = methods.load_base_model(folder, dtype, attention, config.device, seed, **changes)
    methods.add_token_rows(model, new_tokens)
    return model


@contextlib.contextmanager
def zero3_loading(config: StrategyConfig) -> Iterator[None]:
    """Make transformers and PEFT shard every weight, by DeepSpeed, as soon as it is loaded."""
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    # The frozen base keeps the run's precision even where the engine itself runs in fp32.
    settings = {
        **deepspeed_config(config),
        "bf16": {"enabled": config.training.precision == "bf16"},
        "fp16": {"enabled": config.training.precision == "fp16"},
    }
    # The libraries hold a weak reference to this object.
    hf_config = HfDeepSpeedConfig(settings)
    try:
        yield
    finally:
        del hf_config
        unset_hf_deepspeed_config()
