"""What a training process tells the first process of its pod: state, and signs of life.

Two threads tell: the one that trains, and the one that beats although the other waits.
"""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from finetune_trainer.distributed.startup_timer import StartupTimer
from finetune_trainer.runtime.telemetry import RankFile


@dataclass
class RankReporter:
    """What this rank tells the first process of its pod."""

    file: RankFile
    state: dict[str, Any] = field(default_factory=dict)
    moves: int = 0
    """How often the main thread has told something."""
    startup: StartupTimer = field(default_factory=StartupTimer)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, message: Any = None, **fields: Any) -> None:
        """Change some fields and stamp the time; a new message is told at once."""
        if message is not None:
            fields["message"] = message
        self.moves += 1
        with self._lock:
            self.state.update(fields, updated_at=time.time())
            self.file.write(self.state, force=message is not None)

    def beat(self, **fields: Any) -> None:
        """Stamp the time of a sign of life; the second thread does."""
        with self._lock:
            self.state.update(fields, beat_at=time.time())
            self.file.write(self.state, force=True)
