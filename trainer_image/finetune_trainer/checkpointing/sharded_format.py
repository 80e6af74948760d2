"""A checkpoint's files: one safetensors file per rank, readable by any number of ranks.

An entry is named `<tensor>@<start>`: a run of the elements of a tensor, from that index on.
Together the files hold every element once. A reader maps the files and copies the runs that it
needs, so no rank ever holds more than its own share. What else a run must remember, a few small
numbers that are the same on all ranks, stands in a file of rank 0.
"""

from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import torch

from finetune_trainer.strategies.base import StateDict

STATEFUL_FILE = "parts.pt"


class Stateful(Protocol):
    """Something small, equal on all ranks, that a resumed run must remember."""

    def state(self) -> Any:
        """Numbers, texts and tensors, in lists and dicts."""

    def restore(self, state: Any) -> None:
        """Go on from what `state` told."""


StatefulByName = Mapping[str, Stateful]
NO_STATEFUL: StatefulByName = {}


def own_shard(state: StateDict, rank: int, world: int) -> dict[str, torch.Tensor]:
    """What this rank has to write, by entry: replicated runs are dealt out, the largest first."""
    copies = {name: part.values.nbytes for name, part in state.items() if part.replicated}
    loads = [0] * world
    mine = set()
    for name in sorted(copies, key=lambda name: (-copies[name], name)):
        taker = loads.index(min(loads))
        loads[taker] += copies[name]
        if taker == rank:
            mine.add(name)
    return {
        f"{name}@{part.start}": part.values
        for name, part in state.items()
        if not part.replicated or name in mine
    }


def write_shard(folder: Path, rank: int, entries: Mapping[str, torch.Tensor]) -> Path:
    """Write one rank's file; the interpreter stays free for training meanwhile."""
    from safetensors.torch import save_file

    path = folder / f"rank-{rank:05d}.safetensors"
    save_file(dict(entries), path)
    return path


def read_shards(folder: Path, state: StateDict) -> None:
    """Overwrite every fragment with its values from the files.

    Raises ValueError where the files do not hold all of them.
    """
    from safetensors import safe_open

    with ExitStack() as stack, torch.no_grad():
        runs: dict[str, list[tuple[int, Any]]] = defaultdict(list)
        for path in sorted(folder.glob("rank-*.safetensors")):
            file = stack.enter_context(safe_open(path, "pt"))
            for entry in file.keys():  # noqa: SIM118
                name, _, start = entry.rpartition("@")
                runs[name].append((int(start), file.get_slice(entry)))
        for name, part in state.items():
            first, end, found = part.start, part.start + part.values.numel(), 0
            for start, values in runs[name]:
                low, high = max(start, first), min(start + values.get_shape()[0], end)
                if low < high:
                    part.values[low - first : high - first] = values[low - start : high - start]
                    found += high - low
            if found != end - first:
                raise ValueError(f"{folder} holds {found} of {end - first} elements of {name}")


def serialize_stateful(parts: StatefulByName) -> bytes:
    """A copy of all parts' states that training does not change any more."""
    memory = BytesIO()
    torch.save({name: part.state() for name, part in parts.items()}, memory)
    return memory.getvalue()


def load_stateful(folder: Path, parts: StatefulByName) -> None:
    """Restore every part; tensors come back on the CPU."""
    if not parts:
        return
    states = torch.load(folder / STATEFUL_FILE, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.restore(states[name])
