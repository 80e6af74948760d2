"""The cache entry of a base model: one folder per revision, whole or not there.

Files are gathered in `.partial-<job uid>` and the folder is renamed when every digest is known,
so a folder without that prefix is complete, whoever made it, and two jobs that fetch the same
model at the same time cannot disturb each other. What is small (config, tokenizer) comes first:
most things that can be wrong show before the weights are fetched.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from finetune_trainer.durable import seal, sha256_of, sync
from finetune_trainer.sources.address import Address
from finetune_trainer.sources.archive import ARCHIVE_SUFFIXES, unpack
from finetune_trainer.sources.base import Source, SourceFile
from finetune_trainer.sources.meter import Meter, Tell
from finetune_trainer.sources.model_files import (
    check_listing,
    is_needed,
    is_small_file,
    weight_files,
)
from finetune_trainer.sources.opening import open_source
from finetune_trainer.stage import RetryableError

MARK = ".finetune.json"
PARTIAL = ".partial-"
STALE_SECONDS = 24 * 3600
COMMIT = re.compile(r"[0-9a-f]{40}")
_FETCHES = 4
_NOTE = ".revision"

FreeBytes = Callable[[Path], int]


def free_bytes(folder: Path) -> int:
    """Bytes that can still be written to the volume of `folder`."""
    return shutil.disk_usage(folder).free


def folder_name(revision: str) -> str:
    """The first 16 hex digits of a commit or listing digest."""
    return revision.removeprefix("sha256:")[:16]


def find_complete(cache: Path, revision: str) -> Path | None:
    """The snapshot of a revision, if it is there and every file still has its size."""
    folder = cache / folder_name(revision)
    if not (folder / MARK).is_file():
        return None
    mark = json.loads((folder / MARK).read_bytes())
    sizes = {path: entry["bytes"] for path, entry in mark["files"].items()}
    whole = all(_size(folder / path) == size for path, size in sizes.items())
    return folder if whole and mark["revision"] == revision else None


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


class Snapshot:
    """A model that is being gathered."""

    def __init__(
        self, source: Source, cache: Path, job_uid: str, tell: Tell, free: FreeBytes = free_bytes
    ) -> None:
        self._source = source
        self._cache = cache
        self._tell = tell
        self._free = free
        self.address: Address = source.address
        self.revision = source.revision
        self.partial = cache / f"{PARTIAL}{job_uid}"
        self._weights: list[str] = []
        self._open_partial()

    def fetch_small_files(self) -> Path:
        """Get everything but the weights; returns the folder that it lies in."""
        names = [file.path for file in self._source.files]
        if len(names) == 1 and names[0].endswith(ARCHIVE_SUFFIXES):
            self._fetch_archive(self._source.files[0])
            names = self._unpacked()
            check_listing(names, self.address.shown)
        else:
            check_listing(names, self.address.shown)
            self._fetch(file for file in self._source.files if is_small_file(file.path))
        self._weights = weight_files(names, self.partial, self.address.shown)
        return self.partial

    def finish(self) -> Path:
        """Get the weights, digest every file, and publish the folder under its name."""
        by_path = {file.path: file for file in self._source.files}
        self._fetch(by_path[path] for path in self._weights if path in by_path)
        self._write_mark(by_path)
        return self._publish()

    def discard(self) -> None:
        """Forget what was gathered: this model will not be wanted again."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def _open_partial(self) -> None:
        # What an earlier attempt of the job gathered is only good for the same revision.
        note = self.partial / _NOTE
        if self.partial.exists() and (_text(note) != self.revision):
            self.discard()
        self.partial.mkdir(parents=True, exist_ok=True)
        note.write_text(self.revision)

    def _fetch(self, files: Iterable[SourceFile]) -> None:
        wanted = list(files)
        missing = [file for file in wanted if _size(self.partial / file.path) != file.size]
        self._reserve(sum(file.size or 0 for file in missing))
        total = sum(file.size or 0 for file in wanted)
        with (
            Meter(self.partial, total, self._tell),
            ThreadPoolExecutor(_FETCHES) as pool,
        ):
            # list() raises the first error; the pool then ends after the files under way.
            list(pool.map(lambda file: self._source.fetch(file, self.partial), wanted))

    def _fetch_archive(self, archive: SourceFile) -> None:
        self._fetch([archive])
        path = self.partial / archive.path
        self._tell("unpacking the model", 0, None)
        unpack(path, self.partial, is_needed, self._reserve, self.address.shown)
        path.unlink()

    def _reserve(self, needed: int) -> None:
        free = self._free(self._cache)
        if needed > free:
            raise RetryableError(
                "WorkspaceFull",
                f"The model needs {needed} bytes more and the workspace has {free} free.",
                "Enlarge the claim finetune-workspace or delete jobs that are no longer needed.",
            )

    def _unpacked(self) -> list[str]:
        files = (path for path in self.partial.rglob("*") if path.is_file())
        return [path.relative_to(self.partial).as_posix() for path in files]

    def _write_mark(self, by_path: dict[str, SourceFile]) -> None:
        files: dict[str, Any] = {}
        for path in sorted(path for path in self._unpacked() if not path.startswith(".")):
            file = self.partial / path
            if not is_small_file(path) and path not in self._weights:
                file.unlink()
                continue
            self._tell(f"checking {path}", 0, None)
            digest = sha256_of(file)
            known = by_path[path].sha256 if path in by_path else None
            if known and known != digest:
                file.unlink()
                raise self.address.unavailable(f"{path} arrived damaged")
            files[path] = {"bytes": file.stat().st_size, "sha256": digest}
        mark = {
            "version": 1,
            "uri": self.address.shown,
            "revision": self.revision,
            "weights": self._weights,
            "files": files,
        }
        (self.partial / MARK).write_text(json.dumps(mark, indent=1) + "\n")
        # Only now: until here another attempt can go on with what there is.
        shutil.rmtree(self.partial / ".cache", ignore_errors=True)
        (self.partial / _NOTE).unlink()

    def _publish(self) -> Path:
        seal(self.partial)
        final = self._cache / folder_name(self.revision)
        if find_complete(self._cache, self.revision):
            self.discard()  # another job was faster
            return final
        if final.exists():  # it was damaged: files vanished or changed their size
            broken = self._cache / f"{self.partial.name}-broken"
            final.rename(broken)
            shutil.rmtree(broken, ignore_errors=True)
        self.partial.rename(final)
        sync(self._cache)
        return final


def open_snapshot(
    address: Address, volumes: Path, cache: Path, job_uid: str, tell: Tell
) -> Snapshot | CachedSnapshot:
    """The model at `address`, from the cache where it is whole there.

    A full commit is looked for before the hub is asked, so that it needs no network.
    """
    cache.mkdir(parents=True, exist_ok=True)
    commit = address.revision if COMMIT.fullmatch(address.revision or "") else None
    if commit and (folder := find_complete(cache, commit)):
        return CachedSnapshot(folder, commit)
    source = open_source(address, volumes)
    if folder := find_complete(cache, source.revision):
        return CachedSnapshot(folder, source.revision)
    return Snapshot(source, cache, job_uid, tell)


def remove_stale_partials(cache: Path, now: float) -> None:
    """Delete what jobs that died for good left behind: nothing in it written for a day."""
    for folder in cache.glob(f"{PARTIAL}*"):
        times = [path.lstat().st_mtime for path in (folder, *folder.rglob("*"))]
        if now - max(times) > STALE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _text(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None
