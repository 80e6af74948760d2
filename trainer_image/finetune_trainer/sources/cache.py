"""The cache entry of a base model: complete snapshots, each with a marker file.

The marker names every file with its size and digest, and its modification time is the time of the
last use. A job that uses a snapshot touches it; the janitor goes by that time, and removes a
snapshot only while it holds the lease of its revision, so never one that a job has just found.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from finetune_trainer.sources.download_progress import ProgressCallback
from finetune_trainer.sources.lease import Lease
from finetune_trainer.sources.model_files import lacks_processor

MARKER = ".finetune.json"
PARTIAL_PREFIX = ".partial-"
"""Begins the name of a folder that is being downloaded."""

FileCheck = Callable[[Path, Sequence[str]], None]
"""Called with the folder of a complete model and the names of its weight files; raises UserError
where the model is refused."""

log = logging.getLogger("finetune")


def accept_files(folder: Path, weights: Sequence[str]) -> None:
    """The check that accepts every model."""


class CachedSnapshot:
    """A complete snapshot; it has the methods of a `Snapshot`, and they have nothing to do."""

    def __init__(self, folder: Path, revision: str) -> None:
        self.folder = folder
        self.revision = revision

    def fetch_small_files(self) -> Path:
        """The folder, which is complete."""
        return self.folder

    def fetch_all_files(self, check: FileCheck = accept_files) -> Path:
        """The folder, which is complete; raises what `check` raises."""
        check(self.folder, read_weight_files(self.folder))
        return self.folder

    def discard(self) -> None:
        """Keep the folder: other jobs use it too."""


def open_cached_snapshot(
    cache: Path, revision: str, holder: str, report_progress: ProgressCallback
) -> CachedSnapshot | None:
    """The complete snapshot of a revision, or None; it waits for the lease and marks it as used."""
    if find_snapshot(cache, revision) is None:
        return None

    def report_wait(other: str) -> None:
        report_progress(f"waiting for job {other}, which checks the same model", 0, None)

    with revision_lease(cache, revision, holder).hold(report_wait):
        folder = use_snapshot(cache, revision)
    return CachedSnapshot(folder, revision) if folder else None


def use_snapshot(cache: Path, revision: str) -> Path | None:
    """The complete snapshot of a revision, marked as used now. Needs the revision's lease."""
    folder = find_snapshot(cache, revision)
    if folder:
        os.utime(folder / MARKER)
    return folder


def find_snapshot(cache: Path, revision: str) -> Path | None:
    """The snapshot of a revision, if every file of its marker still has its size, and no file is
    missing that an earlier release did not download."""
    folder = cache / snapshot_folder_name(revision)
    try:
        marker = json.loads((folder / MARKER).read_bytes())
        sizes = {path: entry["bytes"] for path, entry in marker["files"].items()}
        is_of_revision = marker["revision"] == revision
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        log.warning("Cached model ignored, its marker is unreadable", extra={"folder": folder})
        return None
    is_complete = all(file_bytes(folder / path) == size for path, size in sizes.items())
    is_usable = is_complete and is_of_revision and not lacks_processor(folder)
    return folder if is_usable else None


def read_weight_files(folder: Path) -> list[str]:
    """Names of the weight files of a complete snapshot."""
    return [str(name) for name in json.loads((folder / MARKER).read_bytes())["weights"]]


def revision_lease(cache: Path, revision: str, holder: str) -> Lease:
    """The lease of one revision of a model; its holder may change the cache entry."""
    return Lease(cache, snapshot_folder_name(revision), holder)


def snapshot_folder_name(revision: str) -> str:
    """The first 16 hex digits of a commit or of the digest of a listing."""
    return revision.removeprefix("sha256:")[:16]


def file_bytes(path: Path) -> int | None:
    """Size of a file; None where there is none."""
    return path.stat().st_size if path.is_file() else None
