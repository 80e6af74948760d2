"""Says what is being done and keeps how long each step took, for people and for the report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Timeline:
    """Seconds per named step, in order; prints a line when a step starts and when it ends."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time one step; the time is kept even when the step fails."""
        self.say(f"{name} ...")
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - started, 1)
            self.say(f"{name}: {self.seconds[name]} s")

    def say(self, line: str) -> None:
        """One line with the time since the start."""
        elapsed = int(time.monotonic() - self.started)
        print(f"[{elapsed // 60:2d}:{elapsed % 60:02d}] {line}", flush=True)

    def total(self) -> float:
        """Seconds since the start."""
        return round(time.monotonic() - self.started, 1)
