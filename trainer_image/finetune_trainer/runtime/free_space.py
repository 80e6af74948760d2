"""Free bytes of a volume."""

import contextlib
import errno
import shutil
from pathlib import Path


def free_bytes(path: Path) -> int:
    """Bytes that can still be written to the volume of `path`, which need not exist yet.

    Where `path` does not answer, those of its nearest parent that does.
    """
    for folder in (path, *path.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(folder).free
    raise FileNotFoundError(errno.ENOENT, "no volume answers", str(path))
