"""The speed of a run, and the history of its steps."""

import json
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer.runtime.errors import is_disk_full

SMOOTHING = 0.9
"""Weight of the past in smoothed figures."""


@dataclass
class StepTotals:
    """Sums over steps; with `decay` an exponential sum, over about the last ten."""

    steps: float = 0.0
    seconds: float = 0.0
    tokens: float = 0.0
    data_wait_seconds: float = 0.0
    flops: float = 0.0

    def add(self, other: "StepTotals", decay: float = 1.0) -> None:
        """Multiply the sums by `decay`, then add those of `other`."""
        for name, value in vars(other).items():
            setattr(self, name, decay * getattr(self, name) + value)


class Throughput:
    """Tokens per second, data wait and MFU over all ranks."""

    def __init__(self, total_steps: int, first_step: int, peak_flops: float | None = None) -> None:
        """`first_step`: the step from which this attempt starts; `peak_flops`: FLOP/s of all
        devices together, None where the profile does not give it."""
        self._total_steps = total_steps
        self._step = first_step
        self._peak_flops = peak_flops
        self._all = StepTotals()
        self._recent = StepTotals()

    def add_step(
        self,
        step: int,
        tokens: int,
        seconds: float,
        data_wait_seconds: float = 0.0,
        flops: float = 0.0,
    ) -> None:
        """Count one step: tokens without padding, its duration, how long this rank waited for
        data, and the operations that the model needed."""
        self._step = step
        totals = StepTotals(1, seconds, tokens, data_wait_seconds, flops)
        self._all.add(totals)
        self._recent.add(totals, decay=SMOOTHING)

    def smoothed_metrics(self) -> dict[str, float]:
        """Fields of Progress, over about the last ten steps."""
        recent = self._recent
        metrics = {
            "tokens_per_second": recent.tokens / recent.seconds,
            "eta_seconds": (self._total_steps - self._step) * recent.seconds / recent.steps,
            "data_wait_share": min(1.0, recent.data_wait_seconds / recent.seconds),
        }
        mfu = self._mfu(recent)
        return metrics if mfu is None else {**metrics, "mfu": mfu}

    def _mfu(self, totals: StepTotals) -> float | None:
        if not self._peak_flops or not totals.seconds:
            return None
        return totals.flops / totals.seconds / self._peak_flops

    @property
    def tokens(self) -> int:
        """Tokens of all steps of this attempt."""
        return int(self._all.tokens)

    @property
    def mean_tokens_per_second(self) -> float | None:
        """Over all steps of this attempt."""
        return self._all.tokens / self._all.seconds if self._all.seconds else None

    @property
    def mean_mfu(self) -> float | None:
        """Model FLOP/s utilisation over all steps of this attempt."""
        return self._mfu(self._all)


def peak_memory_bytes(device: str) -> int:
    """Peak memory of this process: allocated on its device, or resident on a CPU."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class History:
    """The steps of an attempt as JSON lines, which rank 0 writes.

    On a full volume lines are kept in memory until there is free space: the run
    continues if its history cannot be written.
    """

    def __init__(self, path: Path, rank: int) -> None:
        self._path = path if rank == 0 else None
        self._unwritten = b""
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o644)

    def append(self, **values: Any) -> None:
        """Append one line, stamped with the time."""
        if not self._path:
            return
        self._unwritten += json.dumps({**values, "time": time.time()}).encode() + b"\n"
        try:
            with self._path.open("ab", buffering=0) as file:
                self._unwritten = self._unwritten[file.write(self._unwritten) :]
        except OSError as error:
            if not is_disk_full(error):
                raise
