"""How model and optimizer are spread over the ranks: DDP, ZeRO-1/2/3, FSDP2.

Each strategy is one class with the same few verbs, and nothing else in the trainer knows which
one runs.
"""

from typing import Any

from finetune_trainer.strategies.base import StrategyConfig, TrainingStrategy, trainable_parameters
from finetune_trainer.strategies.compile import compile_blocks
from finetune_trainer.strategies.ddp import DDPStrategy
from finetune_trainer.strategies.deepspeed import (
    DeepSpeedStrategy,
    prepare_communication,
    require_precision,
)
from finetune_trainer.strategies.fsdp import FSDPStrategy
from finetune_trainer.strategies.load_model import load_model

__all__ = [
    "StrategyConfig",
    "TrainingStrategy",
    "load_model",
    "prepare_communication",
    "require_precision",
    "trainable_parameters",
    "wrap_model",
]


def wrap_model(model: Any, spread: StrategyConfig) -> TrainingStrategy:
    """The model under its strategy."""
    if spread.training.compile:
        compile_blocks(model, spread)
    if spread.strategy == "DDP":
        return DDPStrategy(model, spread)
    if spread.strategy == "FSDP":
        return FSDPStrategy(model, spread)
    return DeepSpeedStrategy(model, spread)
