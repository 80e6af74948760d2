"""What an artifact's folder holds apart from the model: export writes it, the janitor reads it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from finetune_api.artifact_retention import ALWAYS, WHILE_REFERENCED, retention_seconds

MANIFEST = "manifest.json"
"""Written last: a folder without it is not complete."""
RETENTION_FILE = ".retention"
"""How long the artifact stays once nothing refers to it; absent where that is Always. Its name is
hidden, so it belongs neither to the files of the model nor to the digest."""
_LONGEST = 64

log = logging.getLogger("finetune")


def read_retention(folder: Path) -> str:
    """The retention of an artifact; Always where it cannot be read, WhileReferenced for a folder
    that export has not completed."""
    path = folder / RETENTION_FILE
    try:
        if not _exists(folder / MANIFEST):
            return WHILE_REFERENCED
        if not _exists(path):
            return ALWAYS
        # Neither a link is followed, nor a pipe waited for.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        with os.fdopen(os.open(path, flags), "rb") as file:
            retention = file.read(_LONGEST).decode().strip()
        retention_seconds(retention)
    except (OSError, ValueError) as error:
        extra = {"file": str(path), "error": str(error)}
        log.error("Cannot read the retention of an artifact, it is retained", extra=extra)
        return ALWAYS
    return retention


def _exists(path: Path) -> bool:
    """Raises OSError where that cannot be seen, for example because a file server is away."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True
