"""How the model and its optimizer are distributed over the ranks: DDP, ZeRO-1/2/3 or FSDP2.

Each strategy is a class that implements `base.TrainingStrategy`; no other package depends on which
one runs. `load_model` loads the base model in the form that the strategy needs, the caller applies
the method (`finetune_trainer.methods`), and `wrap_model` returns the strategy.
"""

from typing import Any, assert_never

from finetune_trainer.strategies.base import (
    StrategyConfig,
    TrainingStrategy,
    trainable_parameters,
)
from finetune_trainer.strategies.compile import compile_blocks
from finetune_trainer.strategies.ddp import DDPStrategy
from finetune_trainer.strategies.deepspeed import (
    DeepSpeedStrategy,
    prepare_communication,
    require_precision,
)
from finetune_trainer.strategies.fsdp import FSDPStrategy
from finetune_trainer.strategies.model_loading import load_model

__all__ = [
    "StrategyConfig",
    "TrainingStrategy",
    "load_model",
    "prepare_communication",
    "require_precision",
    "trainable_parameters",
    "wrap_model",
]


def wrap_model(model: Any, config: StrategyConfig) -> TrainingStrategy:
    """Compile the model's blocks if requested, and wrap it for the strategy of `config`."""
    if config.training.compile:
        compile_blocks(model, config)
    match config.strategy:
        case "DDP":
            return DDPStrategy(model, config)
        case "FSDP":
            return FSDPStrategy(model, config)
        case "ZeRO1" | "ZeRO2" | "ZeRO3":
            return DeepSpeedStrategy(model, config)
        case unknown:
            assert_never(unknown)
