"""Reports of a rank to the first process of its pod: its state, and its signs of life.

Two threads report: the main thread, which trains, and the heartbeat's, which also reports while the
main thread waits.
"""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from finetune_trainer.distributed.startup_timer import StartupTimer
from finetune_trainer.runtime.telemetry import RankFile


@dataclass
class RankReporter:
    """Reports the state of this rank to the first process of its pod."""

    file: RankFile
    state: dict[str, Any] = field(default_factory=dict)
    report_count: int = 0
    """How often the main thread has reported."""
    startup: StartupTimer = field(default_factory=StartupTimer)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def report(self, message: str | None = None, **fields: Any) -> None:
        """Change fields of the state and stamp the time; a message is written at once."""
        if message is not None:
            fields["message"] = message
        self.report_count += 1
        with self._lock:
            self.state.update(fields, updated_at=time.time())
            self.file.write(self.state, force=message is not None)

    def report_beat(self, **fields: Any) -> None:
        """Stamp the time of a sign of life; called by the heartbeat's thread."""
        with self._lock:
            self.state.update(fields, beat_at=time.time())
            self.file.write(self.state, force=True)
