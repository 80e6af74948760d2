"""fsync of files and folders, so that a crash leaves a file complete or absent.

A rename is atomic, but it may reach the disk before the content that was written under the old
name. So a file or folder is synced before it gets its final name, and the folder that holds the
name is synced after the rename. Published files are readable by other users, because a model
server runs under another uid.
"""

import hashlib
import os
from pathlib import Path


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_path(path: Path) -> None:
    """Write one file, or the names in one folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Write a file, or a folder and all its content, to the disk, readable by other users."""
    # Files first, then the folders that name them.
    for each in sorted([*path.rglob("*"), path], key=Path.is_dir):
        each.chmod(0o755 if each.is_dir() else 0o644)
        fsync_path(each)
