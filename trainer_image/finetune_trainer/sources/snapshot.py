"""The cache entry of a base model: one folder per revision, whole or not there.

Jobs that want the same revision at the same time take turns (lease.py): the first one gathers the
files in `.partial-<revision>-<token>`, the others wait and find them. The folder is renamed when
every digest is known, so one without that prefix is complete, whoever made it. A job that takes
over what a dead or frozen one has gathered renames it first, so that whoever wakes up writes
nowhere, and keeps only files whose digest the source vouches for. What is small (config,
tokenizer) comes first, in a turn of its own: most things that can be wrong show before the
weights are fetched, and nobody waits while somebody else reads rows.

A job that uses a snapshot touches its mark; the janitor goes by that, and takes a snapshot away
only in a turn of its own, so never one that was just found.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from finetune_trainer.durable import seal, sha256_of, sync
from finetune_trainer.sources.address import Address
from finetune_trainer.sources.archive import ARCHIVE_SUFFIXES, unpack
from finetune_trainer.sources.base import Source, SourceFile
from finetune_trainer.sources.lease import Lease
from finetune_trainer.sources.meter import Meter, Tell, bytes_below
from finetune_trainer.sources.model_files import (
    check_listing,
    is_needed,
    is_small_file,
    weight_files,
)
from finetune_trainer.sources.opening import open_source
from finetune_trainer.sources.room import FreeBytes, free_bytes, reserve

MARK = ".finetune.json"
PARTIAL = ".partial-"
COMMIT = re.compile(r"[0-9a-f]{40}")
_FETCHES = 4
_UNPACKED = ".unpacked"
_BROKEN = ".broken"
T = TypeVar("T")

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
    whole = all(_size(folder / path) == size for path, size in sizes.items())
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


class Snapshot:
    """A model that is being gathered."""

    def __init__(
        self, source: Source, cache: Path, holder: str, tell: Tell, free: FreeBytes = free_bytes
    ) -> None:
        """`holder` is the job's name, for those who wait for it."""
        self._source = source
        self._cache = cache
        self._holder = holder
        self._tell = tell
        self._free = free
        self._small = Path(tempfile.mkdtemp(prefix="finetune-model-"))
        weakref.finalize(self, shutil.rmtree, self._small, ignore_errors=True)
        self.address: Address = source.address
        self.revision = source.revision

    def fetch_small_files(self) -> Path:
        """Get everything but the weights; returns a folder with it that nobody else changes."""
        return self._in_turn(self._gather_small)

    def finish(self) -> Path:
        """Get the weights, digest every file, and publish the folder under its name."""
        return self._in_turn(self._gather_all)

    def discard(self) -> None:
        """Forget what was gathered, unless another job is at it."""
        lease = lease_of(self._cache, self.revision, self._holder)
        if lease.take_if_free():
            for folder in self._partials():
                shutil.rmtree(folder, ignore_errors=True)
            lease.give_back()

    def _in_turn(self, work: Callable[[Lease], T]) -> T:
        while True:
            with lease_of(self._cache, self.revision, self._holder).held(self._waits) as lease:
                try:
                    return work(lease)
                except Exception:
                    if not lease.lost():
                        raise
                    # Frozen for a while: whoever went on has renamed what we were writing to.
                    log.warning("another job has taken the download over; waiting for it")

    def _waits(self, holder: str) -> None:
        who = "an earlier attempt" if holder == self._holder else f"job {holder}"
        self._tell(f"waiting for {who}, which downloads the same model", 0, None)

    def _gather_small(self, lease: Lease) -> Path:
        if folder := use_complete(self._cache, self.revision):
            return folder
        partial = self._adopt(lease)
        names, _ = self._listed(partial)
        for name in filter(is_small_file, names):
            copy = self._small / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(partial / name, copy)
        return self._small

    def _gather_all(self, lease: Lease) -> Path:
        if folder := use_complete(self._cache, self.revision):
            return folder
        partial = self._adopt(lease)
        _, weights = self._listed(partial)
        by_path = {file.path: file for file in self._source.files}
        self._fetch((by_path[path] for path in weights if path in by_path), partial)
        self._write_mark(partial, weights, by_path)
        return self._publish(partial)

    def _listed(self, partial: Path) -> tuple[list[str], list[str]]:
        """Names of all files and of the weights, after getting what is small."""
        files = self._source.files
        names = [file.path for file in files]
        if len(names) == 1 and names[0].endswith(ARCHIVE_SUFFIXES):
            if not (partial / _UNPACKED).exists():
                self._fetch_archive(files[0], partial)
            names = _files_below(partial)
            check_listing(names, self.address.shown)
        else:
            check_listing(names, self.address.shown)
            self._fetch((file for file in files if is_small_file(file.path)), partial)
        return names, weight_files(names, partial, self.address.shown)

    def _partials(self) -> list[Path]:
        return list(self._cache.glob(f"{PARTIAL}{folder_name(self.revision)}-*"))

    def _adopt(self, lease: Lease) -> Path:
        """A folder that is ours alone, with what earlier turns gathered."""
        mine = self._cache / f"{PARTIAL}{folder_name(self.revision)}-{lease.token}"
        found = sorted(self._partials(), key=bytes_below)
        if found:
            # Who was passed over may publish it just now; `_publish` finds that.
            with contextlib.suppress(FileNotFoundError):
                found.pop().rename(mine)
        mine.mkdir(exist_ok=True)
        for folder in (*found, mine / _BROKEN):
            shutil.rmtree(folder, ignore_errors=True)
        if lease.after_silence:
            self._keep_vouched(mine)
        return mine

    def _keep_vouched(self, partial: Path) -> None:
        """Remove what whoever was passed over left half done, and perhaps still writes to."""
        vouched = {file.path for file in self._source.files if file.sha256}
        for name in set(_files_below(partial)) - vouched:
            (partial / name).unlink(missing_ok=True)

    def _fetch(self, files: Iterable[SourceFile], partial: Path) -> None:
        missing = [
            file for file in files if file.size is None or _size(partial / file.path) != file.size
        ]
        needed = sum(file.size or 0 for file in missing)
        self._reserve(needed)
        with Meter(partial, needed, self._tell), ThreadPoolExecutor(_FETCHES) as pool:
            # list() raises the first error; the pool then ends after the files under way.
            list(pool.map(lambda file: self._source.fetch(file, partial), missing))

    def _fetch_archive(self, archive: SourceFile, partial: Path) -> None:
        self._fetch([archive], partial)
        path = partial / archive.path
        self._tell("unpacking the model", 0, None)
        unpack(path, partial, is_needed, self._reserve, self.address.shown)
        path.unlink()
        (partial / _UNPACKED).touch()

    def _reserve(self, needed: int) -> None:
        reserve(needed, self._cache, "The model", self._free)

    def _write_mark(
        self, partial: Path, weights: list[str], by_path: dict[str, SourceFile]
    ) -> None:
        files: dict[str, Any] = {}
        for path in sorted(path for path in _files_below(partial) if not path.startswith(".")):
            file = partial / path
            if not is_small_file(path) and path not in weights:
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
            "weights": weights,
            "files": files,
        }
        (partial / MARK).write_text(json.dumps(mark, indent=1) + "\n")
        # Only now: until here another attempt can go on with what there is.
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        (partial / _UNPACKED).unlink(missing_ok=True)

    def _publish(self, partial: Path) -> Path:
        seal(partial)
        if folder := use_complete(self._cache, self.revision):
            # Of somebody who was passed over; others read it by now.
            shutil.rmtree(partial, ignore_errors=True)
            return folder
        final = self._cache / folder_name(self.revision)
        if final.exists():  # it is damaged: files vanished or changed their size
            # Into our own folder: whoever was passed over has none, and moves nothing of others.
            final.rename(partial / _BROKEN)
            shutil.rmtree(partial / _BROKEN)
        partial.rename(final)
        sync(self._cache)
        return final


def open_snapshot(
    address: Address, volumes: Path, cache: Path, holder: str, tell: Tell
) -> Snapshot | CachedSnapshot:
    """The model at `address`, from the cache where it is whole there; `holder` is the job's name.

    A full commit is looked for before the hub is asked, so that it needs no network.
    """
    cache.mkdir(parents=True, exist_ok=True)
    commit = address.revision if COMMIT.fullmatch(address.revision or "") else None
    if commit and (cached := _cached(cache, commit, holder, tell)):
        return cached
    source = open_source(address, volumes)
    cached = _cached(cache, source.revision, holder, tell)
    return cached or Snapshot(source, cache, holder, tell)


def _cached(cache: Path, revision: str, holder: str, tell: Tell) -> CachedSnapshot | None:
    if find_complete(cache, revision) is None:
        return None

    def waits(other: str) -> None:
        tell(f"waiting for job {other}, which looks at the same model", 0, None)

    with lease_of(cache, revision, holder).held(waits):
        folder = use_complete(cache, revision)
    return CachedSnapshot(folder, revision) if folder else None


def use_complete(cache: Path, revision: str) -> Path | None:
    """The snapshot of a revision if it is whole, marked as used now. Only in a turn at it."""
    folder = find_complete(cache, revision)
    if folder:
        os.utime(folder / MARK)
    return folder


def lease_of(cache: Path, revision: str, holder: str) -> Lease:
    """The turn at one revision of a model."""
    return Lease(cache, folder_name(revision), holder)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _files_below(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return [path.relative_to(folder).as_posix() for path in files]
