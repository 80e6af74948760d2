"""Free space and write speed of a volume, from which the operator estimates a checkpoint's cost.

One process measures with a file of its own, and syncs it chunk by chunk, as a checkpoint is. The
file has no name from the moment it exists, so nothing is left behind however the process ends.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from finetune_api.facts import WorkspaceFacts

from finetune_trainer.runtime.free_space import free_bytes

CHUNK_BYTES = 16 * 2**20
"""Bytes between two syncs."""
MAX_BYTES = 256 * 2**20
MAX_SECONDS = 5.0
"""After which no further chunk is written."""
FREE_SPACE_DIVISOR = 16
"""The probe uses at most this part of the free space: one 16th."""


def measure_volume(folder: Path, clock: Callable[[], float] = time.monotonic) -> WorkspaceFacts:
    """Free bytes, and durable bytes per second, of the volume of `folder`.

    Raises OSError where nothing can be written.
    """
    free = free_bytes(folder)
    limit = free // FREE_SPACE_DIVISOR
    chunk = os.urandom(max(4096, min(CHUNK_BYTES, limit)))
    written, started = 0, clock()
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        while True:
            written += file.write(chunk)
            os.fdatasync(file.fileno())
            seconds = clock() - started
            if seconds >= MAX_SECONDS or written > min(MAX_BYTES, limit) - len(chunk):
                break
    return WorkspaceFacts(free_bytes=free, write_bytes_per_second=written / max(seconds, 1e-6))
