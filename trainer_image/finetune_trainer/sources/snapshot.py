"""Gathers a base model into its cache entry: one folder per revision, whole or not there.

Jobs that want the same revision at the same time take turns (lease.py): the first one gathers the
files in `.partial-<revision>-<token>`, the others wait and find them. The folder is renamed when
every digest is known, so one without that prefix is complete, whoever made it. A job that takes
over what a dead or frozen one has gathered renames it first, so that whoever wakes up writes
nowhere, and keeps only files whose digest the source vouches for. What is small (config,
tokenizer) comes first, in a turn of its own: most things that can be wrong show before the
weights are fetched, and nobody waits while somebody else reads rows.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from finetune_trainer.runtime.fsync import seal, sha256_of, sync
from finetune_trainer.sources.address import Address
from finetune_trainer.sources.archive import ARCHIVE_SUFFIXES, unpack
from finetune_trainer.sources.base import Source, SourceFile
from finetune_trainer.sources.cache import (
    MARK,
    PARTIAL,
    CachedSnapshot,
    cached_snapshot,
    folder_name,
    lease_of,
    size_of,
    use_complete,
)
from finetune_trainer.sources.download_progress import Meter, Tell, bytes_below
from finetune_trainer.sources.free_space import FreeBytes, free_bytes, reserve
from finetune_trainer.sources.lease import Lease
from finetune_trainer.sources.model_files import (
    check_listing,
    is_needed,
    is_small_file,
    weight_files,
)
from finetune_trainer.sources.open_source import open_source

COMMIT = re.compile(r"[0-9a-f]{40}")
_FETCHES = 4
_UNPACKED = ".unpacked"
_BROKEN = ".broken"
T = TypeVar("T")

log = logging.getLogger("finetune")


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
        """Forget what was gathered, unless another job is at it; what is wrong is told already."""
        lease = lease_of(self._cache, self.revision, self._holder)
        with contextlib.suppress(OSError):
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
            file for file in files if file.size is None or size_of(partial / file.path) != file.size
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
    if commit and (cached := cached_snapshot(cache, commit, holder, tell)):
        return cached
    source = open_source(address, volumes)
    cached = cached_snapshot(cache, source.revision, holder, tell)
    return cached or Snapshot(source, cache, holder, tell)


def _files_below(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return [path.relative_to(folder).as_posix() for path in files]
