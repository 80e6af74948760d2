"""Collectives that wait for files: one rank reads or writes many gigabytes, the others stand by.

They have a process group of their own, over the network and not the devices, because a time limit
that finds a hung training step soon is far too short for a model on a slow volume. A rank that
dies is still noticed at once: its connections close.
"""

from datetime import timedelta
from functools import cache
from typing import Any

import torch
from torch import distributed as dist

FILES_TIMEOUT = timedelta(hours=6)


def barrier() -> None:
    """Wait until every rank is here."""
    dist.barrier(group=_group(dist.group.WORLD))


def from_rank_zero(value: Any) -> Any:
    """What rank 0 gave; the other ranks' values are not looked at."""
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_group(dist.group.WORLD))
    return box[0]


def gathered(value: Any) -> list[Any]:
    """The values of all ranks, in their order."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value, group=_group(dist.group.WORLD))
    return found


def any_rank(value: bool) -> bool:
    """Whether it is true on any rank."""
    told = torch.tensor([int(value)])
    dist.all_reduce(told, op=dist.ReduceOp.MAX, group=_group(dist.group.WORLD))
    return bool(told)


@cache
def _group(world: Any) -> Any:
    # Made on first use, which is a collective; `world` tells one process group from the next.
    return dist.new_group(backend="gloo", timeout=FILES_TIMEOUT)
