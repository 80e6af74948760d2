"""The seconds that each part of a rank's start takes, up to its first step."""

import logging
import os
import time
from pathlib import Path

log = logging.getLogger("finetune")

START_TIME_ENV = "FINETUNE_BEGAN"
"""Holds the Unix time at which the first process of the pod was started."""


class StartupTimer:
    """Seconds from the start of the pod's first process to the first step, by part."""

    def __init__(self) -> None:
        now = time.time()
        pod_start = float(os.environ.get(START_TIME_ENV, now))
        self.parts: dict[str, float] = {"launch": now - pod_start}
        self._marked_at = now

    def mark(self, part: str) -> None:
        """Add the time since the last mark to `part`."""
        now = time.time()
        self.parts[part] = self.parts.get(part, 0.0) + now - self._marked_at
        self._marked_at = now

    def finish(self, is_compiled: bool) -> dict[str, float]:
        """Seconds of all parts, to the millisecond; called after the first step, which compiles."""
        self.mark("first_step")
        if is_compiled:
            from torch._dynamo.utils import calculate_time_spent

            spent = calculate_time_spent().get("total_wall_time", 0.0)
            self.parts["compile"] = spent
            self.parts["first_step"] = max(0.0, self.parts["first_step"] - spent)
        parts = {part: round(seconds, 3) for part, seconds in self.parts.items()}
        fields = {f"{part}_seconds": seconds for part, seconds in parts.items()}
        log.info("First step finished", extra={"total_seconds": sum(parts.values()), **fields})
        return parts


def process_start_time() -> float:
    """Unix time at which this process was started, from the kernel."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")
