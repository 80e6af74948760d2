"""Weights that ZeRO-3 has sharded, whole for a moment."""

import contextlib
from typing import Any


def gather_parameters(module: Any) -> contextlib.AbstractContextManager[Any]:
    """The module's weights gathered where they are shards; changes are those of rank 0.

    A collective then.
    """
    if not hasattr(module.weight, "ds_id"):
        return contextlib.nullcontext()
    import deepspeed

    gathered: contextlib.AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
        list(module.parameters()), modifier_rank=0
    )
    return gathered
