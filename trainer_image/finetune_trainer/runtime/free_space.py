"""Free bytes of a volume."""

import contextlib
import shutil
from pathlib import Path


def free_bytes(folder: Path) -> int:
    """Bytes that can still be written to the volume of `folder`.

    Raises OSError where that volume does not answer.
    """
    return shutil.disk_usage(folder).free


def free_bytes_of_nearest(path: Path) -> int | None:
    """The same for `path`, which need not exist, or else its nearest parent that answers.

    None where none answers: an error is being reported, and must not give way to another one.
    """
    for folder in (path, *path.parents):
        with contextlib.suppress(OSError):
            return free_bytes(folder)
    return None
