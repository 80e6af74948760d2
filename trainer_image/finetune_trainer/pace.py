"""How fast a run goes, and what each of its steps was like."""

import json
from pathlib import Path
from typing import Any

SMOOTHING = 0.9
"""Weight of the past in the smoothed speed."""


class Pace:
    """How fast it goes: non-padding tokens over all ranks."""

    def __init__(self, total_steps: int, first_step: int) -> None:
        self._total_steps = total_steps
        self._step = first_step
        self.tokens = 0
        self._seconds = 0.0
        self._recent_tokens = 0.0
        self._recent_seconds = 0.0
        self._recent_steps = 0.0

    def add(self, step: int, tokens: int, seconds: float) -> None:
        """Count one step."""
        self._step = step
        self.tokens += tokens
        self._seconds += seconds
        self._recent_tokens = SMOOTHING * self._recent_tokens + tokens
        self._recent_seconds = SMOOTHING * self._recent_seconds + seconds
        self._recent_steps = SMOOTHING * self._recent_steps + 1

    def speeds(self) -> dict[str, float]:
        """Tokens per second over about the last ten steps, and seconds until the last step."""
        per_step = self._recent_seconds / self._recent_steps
        return {
            "tokens_per_second": self._recent_tokens / self._recent_seconds,
            "eta_seconds": (self._total_steps - self._step) * per_step,
        }

    @property
    def mean_tokens_per_second(self) -> float | None:
        """Over all steps of this attempt."""
        return self.tokens / self._seconds if self._seconds else None


class History:
    """Every step of an attempt as one JSON line; written by rank 0."""

    def __init__(self, path: Path, rank: int) -> None:
        self._path = path if rank == 0 else None
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o644)

    def add(self, **values: Any) -> None:
        """Append one line."""
        if self._path:
            with self._path.open("a") as file:
                file.write(json.dumps(values) + "\n")
