"""The base model as its strategy wants it; no host ever holds it once for every rank."""

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
    spread: StrategyConfig,
    folder: Path,
    dtype: torch.dtype,
    attention: str,
    rope: RopeScaling | None = None,
    new_tokens: Sequence[int] = (),
) -> Any:
    """The base model as its strategy wants it; no host ever holds it once for every rank.

    ZeRO-3 loads straight into its shards, but for a base in four bits, which every rank loads and
    then shards: bits cannot be made of shards. For FSDP rank 0 alone loads it, and hands it out
    when it is wrapped. Else every rank loads it straight to its device.
    """
    seed = spread.training.seed if spread.scores else None
    bits = methods.quantization_config(spread.method, dtype, spread.strategy)
    changes: dict[str, Any] = {"rope": rope, "quantization": bits}
    if spread.strategy == "FSDP" and dist.get_rank() > 0:
        model = methods.empty_model(folder, dtype, attention, spread.scores, **changes)
    elif spread.strategy == "FSDP":
        model = methods.load_model(folder, dtype, attention, score_seed=seed, **changes)
    elif spread.strategy == "ZeRO3" and not bits:
        with zero3_loading(spread):
            model = methods.load_model(folder, dtype, attention, None, seed, **changes)
            methods.add_token_rows(model, new_tokens)
        return model
    else:
        model = methods.load_model(folder, dtype, attention, spread.device, seed, **changes)
    methods.add_token_rows(model, new_tokens)
    return model


@contextlib.contextmanager
def zero3_loading(spread: StrategyConfig) -> Iterator[None]:
    """Let transformers and PEFT know that DeepSpeed shards weights as soon as they are loaded."""
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    # The frozen base keeps the run's precision even where the engine itself runs in fp32.
    config = {
        **deepspeed_config(spread),
        "bf16": {"enabled": spread.training.precision == "bf16"},
        "fp16": {"enabled": spread.training.precision == "fp16"},
    }
    # The libraries look at this object, by a weak reference.
    keep = HfDeepSpeedConfig(config)
    try:
        yield
    finally:
        del keep
        unset_hf_deepspeed_config()
