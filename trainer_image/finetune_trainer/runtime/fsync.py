"""Files that are whole or not there, whatever dies and when.

A rename is atomic, but it may reach the disk before what was written under the old name. So a file
or folder is made durable before it gets its name, and the folder that holds the name after it.
What is published is readable by other users: whoever serves a model runs under another one.
"""

import hashlib
import os
from pathlib import Path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make one file, or the names in one folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(path: Path) -> None:
    """Make a file, or a folder and all that is in it, durable and readable by other users."""
    # Files first, then the folders that name them.
    for each in sorted([*path.rglob("*"), path], key=Path.is_dir):
        each.chmod(0o755 if each.is_dir() else 0o644)
        sync(each)
