"""Removes from a workspace the folders that nothing keeps, safely against running jobs.

The operator lists what must stay; this module decides what is old enough to be removed. The list is
a few minutes old, so whatever was created after it must be safe by other means:

- Ages come from change times on the volume, compared with that of a file that is created there at
  the start: the clocks of pods, nodes and file servers are never compared.
- A job's folder is removed when the list says that the job is gone, or when the list does not have
  the job and the folder is older than any cache of the operator may lag. A deleted job never comes
  back, so a janitor that froze and wakes up with an old list is still right about what it found
  then.
- An artifact that nothing names any more may be named again. It is condemned first, and removed
  when a later janitor still finds it unnamed after a grace period, and after the time for which it
  is retained (artifact_folder.py), which counts from then on. A user may end that time, not the
  grace period. Both begin again after a reference, also after one that came and went between two
  janitors, which the operator lists. While a janitor runs, the operator lets no job and no endpoint
  begin to use an artifact that is missing from its list.
- A model is removed when no unfinished job names it and none has used it for the retention time,
  and under the lease of its revision (lease.py): prepare either marked it as used before, which the
  janitor sees, or finds it missing and fetches it again.
- A folder is renamed into `.janitor/trash` first: it is there completely or not at all. Of two
  janitors at once one alone can rename a folder, and either may empty the trash.
- The volume is marked with the claim. If two claims (of two namespaces) share one folder of a file
  server, the list of one lacks the jobs of the other: then nothing is removed.

Only folders with exactly the names below are touched, no link is followed, and a folder that has
disappeared meanwhile counts as removed. The entries `models/<key>` themselves stay: a pod may be
about to mount one.
"""

from __future__ import annotations

import logging
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune_api.artifact_retention import WHILE_REFERENCED, retention_seconds

from finetune_trainer.sources.artifact_folder import read_retention
from finetune_trainer.sources.cache import MARKER, PARTIAL_PREFIX
from finetune_trainer.sources.download_progress import folder_bytes
from finetune_trainer.sources.lease import LEASE_PREFIX, Lease

JOB = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
ARTIFACT = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?-[0-9a-f]{8}")
MODEL = REVISION = re.compile(r"[0-9a-f]{16}")
OWN_FOLDER = ".janitor"
DAY_SECONDS = 24 * 3600.0
_DELETE_TRIES = 3

log = logging.getLogger("finetune")


class CleanupRefused(Exception):
    """Why nothing at all is removed."""


@dataclass(frozen=True)
class CleanupRules:
    """What must stay and what may be removed, from the operator."""

    claim: str
    """uid of the claim."""
    keep: frozenset[str]
    """`jobs/<first 8 digits of a uid>`, `artifacts/<folder>` and `models/<key>`."""
    gone: frozenset[str]
    """`jobs/<first 8 digits of a uid>` of jobs that were deleted, and `artifacts/<folder>` of those
    that a user released, which are not retained any longer. What is in `keep` too stays."""
    recent: frozenset[str]
    """`artifacts/<folder>` that something referred to since the janitor before."""
    margin_seconds: float
    """Age from which the list has the job of a folder, and grace period of an artifact."""
    retention_seconds: float
    """How long an unused model stays; 0: indefinitely."""


class WorkspaceCleanup:
    """One pass over one workspace."""

    def __init__(self, root: Path, rules: CleanupRules) -> None:
        """Raises CleanupRefused where another claim uses the volume too."""
        self._root = root
        self._rules = rules
        self.has_failed = False
        self._trash = root / OWN_FOLDER / "trash"
        self._condemned = root / OWN_FOLDER / "condemned"
        claims = root / OWN_FOLDER / "claims"
        for folder in (root / OWN_FOLDER, self._trash, self._condemned, claims):
            folder.mkdir(exist_ok=True)
            if folder.is_symlink():
                raise CleanupRefused(f"{folder.relative_to(root)} is a link")
        (claims / rules.claim).touch()
        if others := sorted(each.name for each in claims.iterdir() if each.name != rules.claim):
            raise CleanupRefused(
                f"the claim with uid {others[0]} uses the same folder of the volume; give every "
                f"claim its own, or remove {OWN_FOLDER}/claims/{others[0]} if that claim is gone"
            )
        self._now = _volume_time(root / OWN_FOLDER)

    def remove_unneeded(self) -> None:
        """Remove everything that may go; a folder that cannot be removed does not end the pass."""
        self._try(self._empty_trash, self._trash)
        for path in self._folders("jobs", JOB):
            self._try(self._check_job, path)
        for path in self._folders("artifacts", ARTIFACT):
            self._try(self._check_artifact, path)
        for mark in sorted(self._condemned.iterdir()):
            if not (self._root / "artifacts" / mark.name).is_dir():
                mark.unlink(missing_ok=True)
        for path in self._folders("models", MODEL):
            self._try(self._check_model, path)

    def _try(self, work: Callable[[Path], None], path: Path) -> None:
        try:
            work(path)
        except FileNotFoundError:
            pass  # removed meanwhile, which was the purpose
        except OSError as error:
            fields = {"folder": self._name(path), "error": error.strerror}
            log.error("Cannot clean up a folder", extra=fields)
            self.has_failed = True

    def _check_job(self, path: Path) -> None:
        name = f"jobs/{path.name[:8]}"
        if name in self._rules.keep:
            return
        if name in self._rules.gone or self._age(path) >= self._rules.margin_seconds:
            self._remove(path)

    def _check_artifact(self, path: Path) -> None:
        name, mark = f"artifacts/{path.name}", self._condemned / path.name
        if {name, f"jobs/{path.name[-8:]}"} & self._rules.keep:
            mark.unlink(missing_ok=True)
            return
        is_released = name in self._rules.gone
        retention = WHILE_REFERENCED if is_released else read_retention(path)
        fields: dict[str, object] = {"folder": name, "retention": retention}
        if name in self._rules.recent:
            mark.unlink(missing_ok=True)
        if not mark.exists():
            mark.touch()
            log.info("Artifact condemned, nothing refers to it any more", extra=fields)
            return
        fields["unreferenced_seconds"] = round(self._age(mark))
        if self._age(mark) < retention_seconds(retention):
            fields["bytes"] = folder_bytes(path)
            log.info("Artifact retained, although nothing refers to it", extra=fields)
        elif min(self._age(mark), self._age(path)) >= self._rules.margin_seconds:
            log.info("Artifact expired", extra=fields)
            self._remove(path)
            mark.unlink(missing_ok=True)

    def _check_model(self, path: Path) -> None:
        is_unused = f"models/{path.name}" not in self._rules.keep
        for each in sorted(path.iterdir()):
            if each.name.startswith(LEASE_PREFIX):
                if self._age(each) >= DAY_SECONDS:
                    each.unlink()
            elif each.is_symlink() or not each.is_dir():
                continue
            elif each.name.startswith(PARTIAL_PREFIX):
                limit = self._rules.margin_seconds if is_unused else DAY_SECONDS
                if min(self._age(inner) for inner in (each, *each.rglob("*"))) >= limit:
                    self._remove(each)
            elif REVISION.fullmatch(each.name) and is_unused and self._rules.retention_seconds:
                self._check_revision(each)

    def _check_revision(self, folder: Path) -> None:
        if self._unused_seconds(folder) < self._rules.retention_seconds:
            return
        lease = Lease(folder.parent, folder.name, OWN_FOLDER)
        if not lease.try_acquire():
            return
        try:
            if self._unused_seconds(folder) >= self._rules.retention_seconds:
                self._remove(folder)
        finally:
            lease.release()

    def _unused_seconds(self, folder: Path) -> float:
        marker = folder / MARKER
        return self._age(marker if marker.exists() else folder)

    def _age(self, path: Path) -> float:
        """Seconds since the last change by the volume's clock; no program can set that time."""
        return self._now - path.lstat().st_ctime

    def _folders(self, kind: str, name: re.Pattern[str]) -> Iterator[Path]:
        parent = self._root / kind
        if parent.is_symlink() or not parent.is_dir():
            return
        for path in sorted(parent.iterdir()):
            if name.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                yield path

    def _remove(self, path: Path) -> None:
        name = self._name(path)
        doomed = self._trash / f"{name.replace('/', '_')}-{uuid.uuid4().hex[:8]}"
        path.rename(doomed)
        freed = folder_bytes(doomed)
        _delete(doomed)
        log.info("Folder removed", extra={"folder": name, "freed_bytes": freed})

    def _empty_trash(self, trash: Path) -> None:
        for path in sorted(trash.iterdir()):
            _delete(path)
            log.info("Trash of an earlier janitor removed", extra={"folder": self._name(path)})

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


def _delete(folder: Path) -> None:
    # A process that lost its node may still write: new files can appear during the walk.
    for attempt in range(_DELETE_TRIES):
        try:
            shutil.rmtree(folder)
            return
        except FileNotFoundError:
            if not folder.exists():
                return
        except OSError:
            if attempt == _DELETE_TRIES - 1:
                raise


def _volume_time(folder: Path) -> float:
    """Unix time of the volume, from the change time of a new file."""
    path = folder / f"now-{uuid.uuid4().hex[:8]}"
    path.touch()
    try:
        return path.stat().st_ctime
    finally:
        path.unlink()
