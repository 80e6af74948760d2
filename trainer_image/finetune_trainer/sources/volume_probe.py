"""How much room a volume has and how fast it writes: what a checkpoint will cost.

Measured by one process with a file of its own, made durable piece by piece, as a checkpoint is. The
file has no name from the moment it exists, so whatever ends the process leaves nothing behind.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from finetune_api.run import WorkspaceFacts

from finetune_trainer.sources.free_space import free_bytes

PIECE = 16 * 2**20
"""Bytes between two waits for the disk."""
MOST_BYTES = 256 * 2**20
MOST_SECONDS = 5.0
"""After which no further piece is begun."""
SHARE = 16
"""The probe takes at most one part in so many of what is free."""


def measure(folder: Path, clock: Callable[[], float] = time.monotonic) -> WorkspaceFacts:
    """Free bytes and durable bytes per second of the volume of `folder`.

    Raises OSError where nothing can be written.
    """
    free = free_bytes(folder)
    piece = os.urandom(max(4096, min(PIECE, free // SHARE)))
    written, started = 0, clock()
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        while True:
            written += file.write(piece)
            os.fdatasync(file.fileno())
            seconds = clock() - started
            enough = min(MOST_BYTES, free // SHARE) - len(piece)
            if seconds >= MOST_SECONDS or written > enough:
                break
    return WorkspaceFacts(free_bytes=free, write_bytes_per_second=written / max(seconds, 1e-6))
