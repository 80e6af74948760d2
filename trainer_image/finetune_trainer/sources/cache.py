"""What lies in the cache entry of a base model: whole snapshots, each with its mark.

The mark names every file with its size and digest, and is the time of the last use. A job that uses
a snapshot touches it; the janitor goes by that, and takes a snapshot away only in a turn of its
own, so never one that was just found.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from finetune_trainer.sources.download_progress import Tell
from finetune_trainer.sources.lease import Lease

MARK = ".finetune.json"
PARTIAL = ".partial-"
"""Begins the name of what is being gathered."""

log = logging.getLogger("finetune")


def folder_name(revision: str) -> str:
    """The first 16 hex digits of a commit or listing digest."""
    return revision.removeprefix("sha256:")[:16]


def find_complete(cache: Path, revision: str) -> Path | None:
    """The snapshot of a revision, if it is there and every file still has its size."""
    folder = cache / folder_name(revision)
    try:
        mark = json.loads((folder / MARK).read_bytes())
        sizes = {path: entry["bytes"] for path, entry in mark["files"].items()}
        known = mark["revision"] == revision
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        log.warning("not used, its mark cannot be read: %s", folder)
        return None
    whole = all(size_of(folder / path) == size for path, size in sizes.items())
    return folder if whole and known else None


def weights_of(folder: Path) -> list[str]:
    """The weight files of a complete snapshot."""
    return [str(name) for name in json.loads((folder / MARK).read_bytes())["weights"]]


class CachedSnapshot:
    """A model that is whole already."""

    def __init__(self, folder: Path, revision: str) -> None:
        self.folder = folder
        self.revision = revision

    def fetch_small_files(self) -> Path:
        """The folder; nothing needs to be done."""
        return self.folder

    def finish(self) -> Path:
        """The folder; nothing needs to be done."""
        return self.folder

    def discard(self) -> None:
        """Nothing: others use the folder too."""


def use_complete(cache: Path, revision: str) -> Path | None:
    """The snapshot of a revision if it is whole, marked as used now. Only in a turn at it."""
    folder = find_complete(cache, revision)
    if folder:
        os.utime(folder / MARK)
    return folder


def lease_of(cache: Path, revision: str, holder: str) -> Lease:
    """The turn at one revision of a model."""
    return Lease(cache, folder_name(revision), holder)


def cached_snapshot(cache: Path, revision: str, holder: str, tell: Tell) -> CachedSnapshot | None:
    """The snapshot of a revision if it is whole, after a turn at it."""
    if find_complete(cache, revision) is None:
        return None

    def waits(other: str) -> None:
        tell(f"waiting for job {other}, which looks at the same model", 0, None)

    with lease_of(cache, revision, holder).held(waits):
        folder = use_complete(cache, revision)
    return CachedSnapshot(folder, revision) if folder else None


def size_of(path: Path) -> int | None:
    """Bytes of a file; None where there is none."""
    return path.stat().st_size if path.is_file() else None
