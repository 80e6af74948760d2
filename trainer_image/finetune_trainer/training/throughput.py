"""How fast a run goes, what it waits for, and what each of its steps was like."""

import json
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer.runtime.errors import is_full

SMOOTHING = 0.9
"""Weight of the past in the smoothed speed."""


@dataclass
class StepTotals:
    """Of some steps, or of about the last ten."""

    steps: float = 0.0
    seconds: float = 0.0
    tokens: float = 0.0
    waited: float = 0.0
    flops: float = 0.0

    def add(self, other: "Sums", keep: float = 1.0) -> None:
        """Add a step, after forgetting all but a share of the past."""
        for name, value in vars(other).items():
            setattr(self, name, keep * getattr(self, name) + value)


class Throughput:
    """How fast it goes, over all ranks."""

    def __init__(self, total_steps: int, first_step: int, peak_flops: float | None = None) -> None:
        """`peak_flops`: FLOP/s of all devices together; None where nobody has told."""
        self._total_steps = total_steps
        self._step = first_step
        self._peak = peak_flops
        self._all = StepTotals()
        self._recent = StepTotals()

    def add(
        self, step: int, tokens: int, seconds: float, waited: float = 0.0, flops: float = 0.0
    ) -> None:
        """Count one step: tokens without padding, seconds it took, seconds of them that this rank
        waited for data, and the operations that the model needed."""
        self._step = step
        one = StepTotals(1, seconds, tokens, waited, flops)
        self._all.add(one)
        self._recent.add(one, keep=SMOOTHING)

    def speeds(self) -> dict[str, float]:
        """Fields of Progress, over about the last ten steps."""
        recent = self._recent
        found = {
            "tokens_per_second": recent.tokens / recent.seconds,
            "eta_seconds": (self._total_steps - self._step) * recent.seconds / recent.steps,
            "data_wait_share": min(1.0, recent.waited / recent.seconds),
        }
        utilisation = self._utilisation(recent)
        return found if utilisation is None else {**found, "mfu": utilisation}

    def _utilisation(self, sums: StepTotals) -> float | None:
        if not self._peak or not sums.seconds:
            return None
        return sums.flops / sums.seconds / self._peak

    @property
    def tokens(self) -> int:
        """All of this attempt."""
        return int(self._all.tokens)

    @property
    def mean_tokens_per_second(self) -> float | None:
        """Over all steps of this attempt."""
        return self._all.tokens / self._all.seconds if self._all.seconds else None

    @property
    def mean_utilisation(self) -> float | None:
        """Model FLOP/s utilisation over all steps of this attempt."""
        return self._utilisation(self._all)


def peak_memory_bytes(device: str) -> int:
    """Most memory that this process has held: allocated on its device, or resident on a CPU."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class History:
    """Every step of an attempt as one JSON line; written by rank 0.

    On a full volume the lines wait until there is room: they are no reason to end a run.
    """

    def __init__(self, path: Path, rank: int) -> None:
        self._path = path if rank == 0 else None
        self._unwritten = b""
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o644)

    def add(self, **values: Any) -> None:
        """Append one line, stamped with the time."""
        if not self._path:
            return
        self._unwritten += json.dumps({**values, "time": time.time()}).encode() + b"\n"
        try:
            with self._path.open("ab", buffering=0) as file:
                self._unwritten = self._unwritten[file.write(self._unwritten) :]
        except OSError as error:
            if not is_full(error):
                raise
