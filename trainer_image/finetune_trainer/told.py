"""What a training process tells the first process of its pod: state, and signs of life.

Two threads tell: the one that trains, and the one that beats although the other waits.
"""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from finetune_trainer.startup import Startup
from finetune_trainer.telemetry import RankFile


@dataclass
class Told:
    """What this rank tells the first process of its pod."""

    file: RankFile
    state: dict[str, Any] = field(default_factory=dict)
    moves: int = 0
    """How often the main thread has told something."""
    startup: Startup = field(default_factory=Startup)
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
