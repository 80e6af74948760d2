"""torch.compile for every transformer block.

Blocks are alike, so one compilation serves all of them; whole models would break at every hook and
take minutes. What is compiled are the modules in place: names of weights, and so checkpoints and
adapters, stay what they are. A machine without a compiler is found out before the model trains.
"""

from typing import Any

import torch

from finetune_trainer.runtime.errors import UserError
from finetune_trainer.strategies.base import StrategyConfig, decoder_layers

MAX_RECOMPILATIONS = 64
"""Variants of a block; batches with and without masks and of new lengths make a few."""


def compile_blocks(model: Any, spread: StrategyConfig) -> None:
    """Compile the blocks of a model that is not wrapped yet.

    Raises UserError CannotCompile where this machine cannot.
    """
    check_compiler(spread.device)
    # A block that is computed again must run as it ran first: falling back to uncompiled code in
    # between, as after the default of 8 shapes and masks, keeps other tensors.
    torch._dynamo.config.recompile_limit = MAX_RECOMPILATIONS
    for layer in decoder_layers(model):
        layer.compile()


def check_compiler(device: torch.device) -> None:
    """Raise UserError CannotCompile unless a small function compiles and runs on the device."""
    try:
        torch.compile(_sum_of_sines)(torch.ones(64, device=device))
    except Exception as error:
        said = next((line for line in str(error).splitlines() if line.strip()), "")
        raise UserError(
            "CannotCompile",
            f"torch.compile does not work on this machine: {said[:300]}",
            "Set training.compile to false, or use an image with a C++ compiler (on a CPU), or "
            "with Triton and a C compiler (on a GPU).",
        ) from error


def _sum_of_sines(values: torch.Tensor) -> torch.Tensor:
    return torch.sin(values).sum()
