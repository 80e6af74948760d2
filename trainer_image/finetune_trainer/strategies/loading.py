"""The base model as its strategy wants it; no host ever holds it once for every rank."""

from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from finetune_trainer import methods
from finetune_trainer.strategies.base import Spread
from finetune_trainer.strategies.zero import deepspeed_config


def load(spread: Spread, folder: Path, dtype: torch.dtype, attention: str) -> Any:
    """The base model as its strategy wants it; no host ever holds it once for every rank.

    ZeRO-3 loads straight into its shards. For FSDP rank 0 alone loads it, and hands it out when
    it is wrapped. Else every rank loads it straight to its device.
    """
    seed = spread.training.seed if spread.scores else None
    if spread.strategy == "FSDP":
        if dist.get_rank() == 0:
            return methods.load_model(folder, dtype, attention, score_seed=seed)
        return methods.empty_model(folder, dtype, attention, spread.scores)
    if spread.strategy != "ZeRO3":
        return methods.load_model(folder, dtype, attention, spread.device, seed)
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    # The frozen base keeps the run's precision even where the engine itself runs in fp32.
    config = {
        **deepspeed_config(spread),
        "bf16": {"enabled": spread.training.precision == "bf16"},
        "fp16": {"enabled": spread.training.precision == "fp16"},
    }
    # transformers looks at this object, by a weak reference, whenever it loads a model.
    keep = HfDeepSpeedConfig(config)
    try:
        return methods.load_model(folder, dtype, attention, None, seed)
    finally:
        del keep
        unset_hf_deepspeed_config()
