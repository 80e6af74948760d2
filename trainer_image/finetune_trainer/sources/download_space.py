"""The check for free space before a download."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from finetune_trainer.runtime.errors import RetryableError
from finetune_trainer.runtime.free_space import free_bytes

FreeBytes = Callable[[Path], int]


def require_free_space(needed: int, folder: Path, what: str, free: FreeBytes = free_bytes) -> None:
    """Raise RetryableError WorkspaceFull where `folder` has less than `needed` bytes free.

    `what` is the subject of the message. A write that fails later, although there was space at
    first, has the reason NoSpaceLeft (`runtime.errors`).
    """
    available = free(folder)
    if needed > available:
        raise RetryableError(
            "WorkspaceFull",
            f"{what} needs {needed} bytes more and the workspace has {available} free.",
            "Enlarge the workspace claim, or delete jobs and release artifacts that are no longer "
            "needed.",
        )
