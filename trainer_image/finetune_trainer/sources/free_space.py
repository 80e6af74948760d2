"""Whether there is room for what is to be downloaded, asked before it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from finetune_trainer.runtime.errors import RetryableError

FreeBytes = Callable[[Path], int]


def free_bytes(folder: Path) -> int:
    """Bytes that can still be written to the volume of `folder`."""
    return shutil.disk_usage(folder).free


def reserve(needed: int, folder: Path, what: str, free: FreeBytes = free_bytes) -> None:
    """RetryableError where the volume of `folder` has less than `needed` bytes."""
    there = free(folder)
    if needed > there:
        raise RetryableError(
            "WorkspaceFull",
            f"{what} needs {needed} bytes more and the workspace has {there} free.",
            "Enlarge the claim of the workspace or delete jobs that are no longer needed.",
        )
