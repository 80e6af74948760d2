"""torch.compile for every transformer block.

All blocks have the same code, so one compilation serves all of them; compiling the whole model
would break the graph at every hook and take minutes. Modules are compiled in place, so parameter
names, and with them checkpoints and adapters, do not change. A machine without a compiler is
detected before training starts.
"""

from typing import Any

import torch

from finetune_trainer.runtime.errors import UserError
from finetune_trainer.strategies.base import StrategyConfig, decoder_layers

MAX_RECOMPILATIONS = 64
"""Variants of a block: with and without a mask, and for new sequence lengths."""


def compile_blocks(model: Any, config: StrategyConfig) -> None:
    """Compile the blocks of a model that is not wrapped yet.

    Raises UserError CannotCompile where this machine has no working compiler.
    """
    check_compiler(config.device)
    # Recomputing a checkpointed block must run the code of its first forward pass. At the default
    # limit of 8 variants dynamo falls back to eager code, which saves other tensors.
    torch._dynamo.config.recompile_limit = MAX_RECOMPILATIONS
    for layer in decoder_layers(model):
        layer.compile()


def check_compiler(device: torch.device) -> None:
    """Raise UserError CannotCompile unless a small function compiles and runs on the device."""
    try:
        torch.compile(_sum_of_sines)(torch.ones(64, device=device))
    except Exception as error:
        cause = next((line for line in str(error).splitlines() if line.strip()), "")
        raise UserError(
            "CannotCompile",
            f"torch.compile does not work on this machine: {cause[:300]}",
            "Set training.compile to false, or use an image with a C++ compiler (on a CPU), or "
            "with Triton and a C compiler (on a GPU).",
        ) from error


def _sum_of_sines(values: torch.Tensor) -> torch.Tensor:
    return torch.sin(values).sum()
