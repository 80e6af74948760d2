"""How model and optimizer are spread over the ranks: DDP, ZeRO-1/2/3, FSDP2.

Each strategy is one class with the same few verbs, and nothing else in the trainer knows which
one runs.
"""

from typing import Any

from finetune_trainer.strategies.base import Engine, Spread, trained
from finetune_trainer.strategies.compiling import compile_blocks
from finetune_trainer.strategies.fully_sharded import FullyShardedData
from finetune_trainer.strategies.loading import load
from finetune_trainer.strategies.replicated import Replicated
from finetune_trainer.strategies.zero import ZeroSharded, prepare_communication, require_precision

__all__ = [
    "Engine",
    "Spread",
    "load",
    "prepare_communication",
    "require_precision",
    "trained",
    "wrap",
]


def wrap(model: Any, spread: Spread) -> Engine:
    """The model under its strategy."""
    if spread.training.compile:
        compile_blocks(model, spread)
    if spread.strategy == "DDP":
        return Replicated(model, spread)
    if spread.strategy == "FSDP":
        return FullyShardedData(model, spread)
    return ZeroSharded(model, spread)
