"""Temporary access to the full weights of a module that ZeRO-3 has sharded."""

import contextlib
from typing import Any


def gather_parameters(module: Any) -> contextlib.AbstractContextManager[Any]:
    """Context in which the module's parameters are full tensors; shards then get rank 0's values.

    A collective where ZeRO-3 has sharded the module, else it does nothing.
    """
    if not hasattr(module.weight, "ds_id"):
        return contextlib.nullcontext()
    import deepspeed

    gathered: contextlib.AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
        list(module.parameters()), modifier_rank=0
    )
    return gathered
