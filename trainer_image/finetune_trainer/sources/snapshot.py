"""Downloads a base model into its cache entry: one folder per revision, complete or absent.

Jobs that need the same revision at the same time take its lease in turn (lease.py): the first one
downloads the files into `.partial-<revision>-<token>`, and the others wait and find them. The
folder is renamed when every digest is known, so a folder without that prefix is complete, whichever
job made it. A job that takes over the files of a dead or frozen one renames their folder first, so
that the other job, if it wakes up, writes nowhere, and keeps only files for which the source gives
a digest. Small files (config, tokenizer) come first, under the lease alone: most mistakes show
before the weights are fetched, and no job waits while another one reads rows.
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

from finetune_trainer.runtime.free_space import free_bytes
from finetune_trainer.runtime.fsync import fsync_path, fsync_tree, sha256_file
from finetune_trainer.sources.address import Address
from finetune_trainer.sources.archive import ARCHIVE_SUFFIXES, unpack
from finetune_trainer.sources.base import Source, SourceFile
from finetune_trainer.sources.cache import (
    MARKER,
    PARTIAL_PREFIX,
    CachedSnapshot,
    FileCheck,
    accept_files,
    file_bytes,
    open_cached_snapshot,
    read_weight_files,
    revision_lease,
    snapshot_folder_name,
    use_snapshot,
)
from finetune_trainer.sources.download_progress import (
    DownloadProgress,
    ProgressCallback,
    folder_bytes,
)
from finetune_trainer.sources.download_space import FreeBytes, require_free_space
from finetune_trainer.sources.lease import Lease
from finetune_trainer.sources.model_files import MODEL_LAYOUT, Layout, is_needed, is_small_file
from finetune_trainer.sources.source_factory import open_source

COMMIT = re.compile(r"[0-9a-f]{40}")
_PARALLEL_FETCHES = 4
_UNPACKED = ".unpacked"
_DAMAGED = ".broken"
T = TypeVar("T")

log = logging.getLogger("finetune")


def open_snapshot(
    address: Address,
    volumes: Path,
    cache: Path,
    holder: str,
    report_progress: ProgressCallback,
    layout: Layout = MODEL_LAYOUT,
) -> Snapshot | CachedSnapshot:
    """The model at `address`, from the cache if it is complete there; `holder` is the job's name.

    A full commit is looked up in the cache before the hub is contacted, so it needs no network.
    """
    cache.mkdir(parents=True, exist_ok=True)
    commit = address.revision if COMMIT.fullmatch(address.revision or "") else None
    if commit and (cached := open_cached_snapshot(cache, commit, holder, report_progress)):
        return cached
    source = open_source(address, volumes)
    cached = open_cached_snapshot(cache, source.revision, holder, report_progress)
    return cached or Snapshot(source, cache, holder, report_progress, layout)


class Snapshot:
    """A model that is being downloaded."""

    def __init__(
        self,
        source: Source,
        cache: Path,
        holder: str,
        report_progress: ProgressCallback,
        layout: Layout = MODEL_LAYOUT,
        free: FreeBytes = free_bytes,
    ) -> None:
        """`holder` is the job's name, which jobs that wait for the lease report."""
        self._source = source
        self._cache = cache
        self._holder = holder
        self._report_progress = report_progress
        self._layout = layout
        self._free = free
        self._small = Path(tempfile.mkdtemp(prefix="finetune-model-"))
        weakref.finalize(self, shutil.rmtree, self._small, ignore_errors=True)
        self.address: Address = source.address
        self.revision = source.revision

    def fetch_small_files(self) -> Path:
        """Get everything but the weights; returns a folder with it that no other job changes."""
        return self._with_lease(self._download_small_files)

    def fetch_all_files(self, check: FileCheck = accept_files) -> Path:
        """Get the weights, digest and check every file, and publish the folder under its name.

        A folder that `check` refuses is not published.
        """
        return self._with_lease(lambda lease: self._download_all_files(lease, check))

    def discard(self) -> None:
        """Remove the partial download, unless another job has the lease.

        A failure is ignored: the error for which the download is discarded is reported already.
        """
        lease = revision_lease(self._cache, self.revision, self._holder)
        with contextlib.suppress(OSError):
            if lease.try_acquire():
                for folder in self._partial_folders():
                    shutil.rmtree(folder, ignore_errors=True)
                lease.release()

    def _with_lease(self, work: Callable[[Lease], T]) -> T:
        def report_wait(holder: str) -> None:
            other = "an earlier attempt" if holder == self._holder else f"job {holder}"
            message = f"waiting for {other}, which downloads the same model"
            self._report_progress(message, 0, None)

        while True:
            with revision_lease(self._cache, self.revision, self._holder).hold(
                report_wait
            ) as lease:
                try:
                    return work(lease)
                except Exception:
                    if not lease.is_lost():
                        raise
                    # This process was frozen for a while, and another job has renamed the folder.
                    log.warning(
                        "Another job has taken over the download, waiting for it",
                        extra={"revision": self.revision},
                    )

    def _download_small_files(self, lease: Lease) -> Path:
        if folder := use_snapshot(self._cache, self.revision):
            return folder
        partial = self._adopt_partial(lease)
        names, _ = self._list_files(partial)
        for name in filter(is_small_file, names):
            copy = self._small / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(partial / name, copy)
        return self._small

    def _download_all_files(self, lease: Lease, check: FileCheck) -> Path:
        if folder := use_snapshot(self._cache, self.revision):
            check(folder, read_weight_files(folder))
            return folder
        partial = self._adopt_partial(lease)
        _, weights = self._list_files(partial)
        by_path = {file.path: file for file in self._source.files}
        self._fetch((by_path[path] for path in weights if path in by_path), partial)
        files = self._digest_files(partial, weights, by_path)
        # After the digests, so that a file damaged in transit is not reported as the user's error.
        check(partial, weights)
        self._write_marker(partial, weights, files)
        return self._publish(partial)

    def _adopt_partial(self, lease: Lease) -> Path:
        """A folder for this holder alone, with the files that earlier holders have downloaded."""
        mine = self._cache / (
            f"{PARTIAL_PREFIX}{snapshot_folder_name(self.revision)}-{lease.token}"
        )
        found = sorted(self._partial_folders(), key=folder_bytes)
        if found:
            # A holder that lost the lease may publish it just now; `_publish` handles that.
            with contextlib.suppress(FileNotFoundError):
                found.pop().rename(mine)
        mine.mkdir(exist_ok=True)
        for folder in (*found, mine / _DAMAGED):
            shutil.rmtree(folder, ignore_errors=True)
        if lease.took_over:
            # The previous holder left these files half done, and may still write to them.
            verifiable = {file.path for file in self._source.files if file.sha256}
            for name in set(_files_below(mine)) - verifiable:
                (mine / name).unlink(missing_ok=True)
        return mine

    def _partial_folders(self) -> list[Path]:
        name = snapshot_folder_name(self.revision)
        return list(self._cache.glob(f"{PARTIAL_PREFIX}{name}-*"))

    def _list_files(self, partial: Path) -> tuple[list[str], list[str]]:
        """Names of all files and of the weights; fetches the small files first."""
        files = self._source.files
        names = [file.path for file in files]
        if len(names) == 1 and names[0].endswith(ARCHIVE_SUFFIXES):
            if not (partial / _UNPACKED).exists():
                self._fetch_archive(files[0], partial)
            names = _files_below(partial)
            self._layout.check_listing(names, self.address.public_uri)
        else:
            self._layout.check_listing(names, self.address.public_uri)
            self._fetch((file for file in files if is_small_file(file.path)), partial)
        return names, self._layout.weight_files(names, partial, self.address.public_uri)

    def _fetch(self, files: Iterable[SourceFile], partial: Path) -> None:
        missing = [
            file
            for file in files
            if file.size is None or file_bytes(partial / file.path) != file.size
        ]
        needed = sum(file.size or 0 for file in missing)
        self._require_space(needed)
        with (
            DownloadProgress(partial, needed, self._report_progress),
            ThreadPoolExecutor(_PARALLEL_FETCHES) as pool,
        ):
            # list() raises the first error; the pool then finishes the files in progress.
            list(pool.map(lambda file: self._source.fetch(file, partial), missing))

    def _fetch_archive(self, archive: SourceFile, partial: Path) -> None:
        self._fetch([archive], partial)
        path = partial / archive.path
        self._report_progress("unpacking the model", 0, None)
        uri = self.address.public_uri
        unpack(path, partial, self._layout, is_needed, self._require_space, uri)
        path.unlink()
        (partial / _UNPACKED).touch()

    def _require_space(self, needed: int) -> None:
        require_free_space(needed, self._cache, "The model", self._free)

    def _digest_files(
        self, partial: Path, weights: list[str], by_path: dict[str, SourceFile]
    ) -> dict[str, Any]:
        """Size and digest of each file by its name; removes files that the model does not need.

        Raises RetryableError where a digest is not that of the source.
        """
        files: dict[str, Any] = {}
        for path in sorted(path for path in _files_below(partial) if not path.startswith(".")):
            file = partial / path
            if not is_small_file(path) and path not in weights:
                file.unlink()
                continue
            self._report_progress(f"checking {path}", 0, None)
            digest = sha256_file(file)
            expected = by_path[path].sha256 if path in by_path else None
            if expected and expected != digest:
                file.unlink()
                raise self.address.source_unavailable(f"{path} arrived damaged")
            files[path] = {"bytes": file.stat().st_size, "sha256": digest}
        return files

    def _write_marker(self, partial: Path, weights: list[str], files: dict[str, Any]) -> None:
        marker = {
            "version": 1,
            "uri": self.address.public_uri,
            "revision": self.revision,
            "weights": weights,
            "files": files,
        }
        (partial / MARKER).write_text(json.dumps(marker, indent=1) + "\n")
        # Not before: until here another attempt can continue with these files.
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        (partial / _UNPACKED).unlink(missing_ok=True)

    def _publish(self, partial: Path) -> Path:
        fsync_tree(partial)
        if folder := use_snapshot(self._cache, self.revision):
            # A holder that lost the lease has published it, and other jobs read it by now.
            shutil.rmtree(partial, ignore_errors=True)
            return folder
        final = self._cache / snapshot_folder_name(self.revision)
        if final.exists():  # files disappeared or changed their size, or its processor is missing
            # Into this holder's folder: a holder that lost the lease has none, and moves nothing.
            final.rename(partial / _DAMAGED)
            shutil.rmtree(partial / _DAMAGED)
        partial.rename(final)
        fsync_path(self._cache)
        return final


def _files_below(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return [path.relative_to(folder).as_posix() for path in files]
