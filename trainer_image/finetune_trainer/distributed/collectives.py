"""Collectives with a long timeout, for steps in which one rank reads or writes files.

They have a process group of their own, over the network and not over the devices, because the
timeout that finds a hung training step soon is far too short for a model on a slow volume. The
death of a rank is still noticed at once: its connections close.
"""

from datetime import timedelta
from functools import cache
from typing import Any

import torch
from torch import distributed as dist

FILES_TIMEOUT = timedelta(hours=6)


def barrier() -> None:
    """Wait until every rank gets here."""
    dist.barrier(group=_file_group(dist.group.WORLD))


def broadcast_from_rank_zero(value: Any) -> Any:
    """The value of rank 0, on every rank; the values of the other ranks are ignored."""
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_file_group(dist.group.WORLD))
    return box[0]


def all_gather(value: Any) -> list[Any]:
    """The values of all ranks, in the order of the ranks."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_file_group(dist.group.WORLD))
    return values


def any_rank(value: bool) -> bool:
    """Whether `value` is true on any rank."""
    flag = torch.tensor([int(value)])
    dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=_file_group(dist.group.WORLD))
    return bool(flag)


@cache
def _file_group(world: Any) -> Any:
    # Created on first use, which is a collective; `world` is the cache key, so that a process that
    # joins another process group gets another one.
    return dist.new_group(backend="gloo", timeout=FILES_TIMEOUT)
