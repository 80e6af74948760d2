"""The files of a checkpoint: one safetensors file per rank, readable at any world size.

An entry is named `<tensor>@<start>` and holds consecutive elements of the flattened tensor from
that index on. Together the files hold every element once. A reader maps all files and copies only
the elements of its own shard, so no rank holds more than its shard in memory. Rank 0 writes one
more file for what is small and equal on all ranks, such as the state of early stopping.
"""

import fnmatch
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import torch

from finetune_trainer.strategies.base import StateDict

STATEFUL_FILE = "parts.pt"


class Stateful(Protocol):
    """An object with small state, equal on all ranks, that a checkpoint saves and restores."""

    def state_dict(self) -> Any:
        """Numbers, strings and tensors, in lists and dicts."""

    def load_state_dict(self, state_dict: Any) -> None:
        """Continue from what `state_dict` returned."""


StatefulByName = Mapping[str, Stateful]
NO_STATEFUL: StatefulByName = {}


def own_shard(state: StateDict, rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """The entries that this rank writes.

    Fragments that only this rank holds, and its part of the replicated ones: these are assigned to
    ranks largest first, each to the rank with the fewest bytes so far.
    """
    replicated = {
        name: fragment.values.nbytes for name, fragment in state.items() if fragment.is_replicated
    }
    assigned_bytes = [0] * world_size
    mine = set()
    for name in sorted(replicated, key=lambda name: (-replicated[name], name)):
        writer = assigned_bytes.index(min(assigned_bytes))
        assigned_bytes[writer] += replicated[name]
        if writer == rank:
            mine.add(name)
    return {
        f"{name}@{fragment.start}": fragment.values
        for name, fragment in state.items()
        if not fragment.is_replicated or name in mine
    }


def write_shard(folder: Path, rank: int, shard: Mapping[str, torch.Tensor]) -> Path:
    """Write one rank's file; safetensors releases the GIL, so that training continues meanwhile."""
    from safetensors.torch import save_file

    path = folder / f"rank-{rank:05d}.safetensors"
    save_file(dict(shard), path)
    return path


def read_shards(folder: Path, names: Iterable[str], state: StateDict) -> None:
    """Overwrite every fragment of `state` with its elements from those of the files that are
    shards.

    Raises ValueError where the files lack some of them.
    """
    from safetensors import safe_open

    with ExitStack() as stack, torch.no_grad():
        entries: dict[str, list[tuple[int, Any]]] = defaultdict(list)
        for shard in sorted(fnmatch.filter(names, "rank-*.safetensors")):
            file = stack.enter_context(safe_open(folder / shard, "pt"))
            for entry in file.keys():  # noqa: SIM118
                name, _, start = entry.rpartition("@")
                entries[name].append((int(start), file.get_slice(entry)))
        for name, fragment in state.items():
            first, end = fragment.start, fragment.start + fragment.values.numel()
            copied = 0
            for start, values in entries[name]:
                low, high = max(start, first), min(start + values.get_shape()[0], end)
                if low < high:
                    fragment.values[low - first : high - first] = values[low - start : high - start]
                    copied += high - low
            if copied != end - first:
                raise ValueError(f"{folder} holds {copied} of {end - first} elements of {name}")


def serialize_stateful(stateful: StatefulByName) -> bytes:
    """A copy of all states; later training steps do not change it."""
    buffer = BytesIO()
    torch.save({name: each.state_dict() for name, each in stateful.items()}, buffer)
    return buffer.getvalue()


def load_stateful(folder: Path, stateful: StatefulByName) -> None:
    """Restore every state; its tensors are on the CPU."""
    if not stateful:
        return
    states = torch.load(folder / STATEFUL_FILE, map_location="cpu", weights_only=True)
    for name, each in stateful.items():
        each.load_state_dict(states[name])
