"""Files of another node, on volumes whose clients cache names.

An NFS client remembers the names in a folder, and that a name is missing, for up to `acdirmax`, 60
seconds by default. Opening the folder makes it ask the server whether the folder has changed.
"""

import contextlib
import errno
import time
from collections.abc import Callable
from pathlib import Path

CACHED_SECONDS = 60.0
POLL_SECONDS = 1.0


def wait_for_file(path: Path, sleep: Callable[[float], None] = time.sleep) -> bool:
    """Whether a file exists that an earlier stage wrote, maybe a moment ago and on another node."""
    tries = int(CACHED_SECONDS / POLL_SECONDS)
    while not _exists(path):
        if tries <= 0:
            return False
        tries -= 1
        for folder in (path.parent.parent, path.parent):
            with contextlib.suppress(OSError):
                list(folder.iterdir())
        sleep(POLL_SECONDS)
    return True


def _exists(path: Path) -> bool:
    """Whether it is a file; not while the handle of a folder that was replaced is stale."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return False
