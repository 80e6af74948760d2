"""Removes from a workspace what nothing keeps: `python -m finetune_trainer.janitor --keep FILE`.

The operator says what must stay; this program decides what is old enough to go. The list is a few
minutes old, so what came after it must be safe by other means:

- Ages are times of change on the volume, compared with that of a file made there at the start: the
  clocks of pods, nodes and file servers are never compared. Only the age of the list is judged by
  this pod's clock, and a list that looks old, or comes from the future, removes nothing.
- A job's folder goes when the list says that the job is gone, or has no such job and the folder is
  older than any cache of the operator may lag. A job that was deleted never comes back, so a
  janitor that was frozen and wakes up with an old list is still right about what it found then.
- An artifact that nothing names any more may be named again. It is condemned first and goes when a
  later janitor still finds it unnamed after a time of grace. The operator lets nobody begin to use
  an artifact that a running janitor's list does not have.
- A model goes when no unfinished job names it and none has used it for the retention time; in a
  turn at its revision (sources/lease.py), so prepare either marked it as used before, which is
  seen here, or finds it gone and fetches it.
- Everything is renamed into `.janitor/trash` first: it is there as a whole or not at all. Two
  janitors at once cannot both rename a folder, and either may empty the trash.
- The volume is marked with the claim. Where two claims (of two namespaces) share one folder of a
  file server, the list of one lacks the jobs of the other: then nothing is removed.

Only folders of the exact shapes below are touched, no link is followed, and what is not there any
more is a success. Entries `models/<key>` themselves stay: a pod may be about to mount one.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_api.run import ExitCode

from finetune_trainer.sources.cache import MARK, PARTIAL
from finetune_trainer.sources.download_progress import bytes_below
from finetune_trainer.sources.lease import PREFIX as TURN
from finetune_trainer.sources.lease import Lease

JOB = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
ARTIFACT = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?-[0-9a-f]{8}")
MODEL = REVISION = re.compile(r"[0-9a-f]{16}")
OWN = ".janitor"
DAY = 24 * 3600.0
_TRIES = 3
Say = Callable[[str], None]


class Refused(Exception):
    """Why nothing at all is removed."""


@dataclass(frozen=True)
class Orders:
    """What the operator says."""

    claim: str
    """uid of the claim."""
    keep: frozenset[str]
    """`jobs/<first 8 digits of a uid>`, `artifacts/<folder>` and `models/<key>`."""
    gone: frozenset[str]
    """`jobs/<first 8 digits of a uid>` of jobs that were there and are not any more."""
    margin: float
    """Seconds: age of a folder from which the list knows its job, and grace of an artifact."""
    retention: float
    """Seconds that an unused model stays; 0: for ever."""


class Janitor:
    """One pass over one workspace."""

    def __init__(self, root: Path, orders: Orders, say: Say) -> None:
        """Refused where the volume is not this claim's alone."""
        self._root = root
        self._orders = orders
        self._say = say
        self.failed = False
        self._trash = root / OWN / "trash"
        self._condemned = root / OWN / "condemned"
        claims = root / OWN / "claims"
        for folder in (root / OWN, self._trash, self._condemned, claims):
            folder.mkdir(exist_ok=True)
            if folder.is_symlink():
                raise Refused(f"{folder.relative_to(root)} is a link")
        (claims / orders.claim).touch()
        if others := sorted(each.name for each in claims.iterdir() if each.name != orders.claim):
            raise Refused(
                f"the claim with uid {others[0]} uses the same folder of the volume; give every "
                f"claim its own, or remove {OWN}/claims/{others[0]} if that claim is gone"
            )
        self._now = _time_on(root / OWN)

    def run(self) -> None:
        """Remove what may go; go on where something cannot be removed."""
        self._attempt("empty the trash", self._empty_trash)
        for uid in self._folders("jobs", JOB):
            self._attempt(f"remove jobs/{uid}", self._job, uid)
        for name in self._folders("artifacts", ARTIFACT):
            self._attempt(f"remove artifacts/{name}", self._artifact, name)
        for mark in sorted(self._condemned.iterdir()):
            if not (self._root / "artifacts" / mark.name).is_dir():
                mark.unlink(missing_ok=True)
        for key in self._folders("models", MODEL):
            self._attempt(f"look at models/{key}", self._model, key)

    def _attempt(self, what: str, work: Callable[..., None], *of: str) -> None:
        try:
            work(*of)
        except FileNotFoundError:
            pass  # gone meanwhile, which is all that was wanted
        except OSError as error:
            self._say(f"could not {what}: {error.strerror}")
            self.failed = True

    def _job(self, uid: str) -> None:
        path, mark = self._root / "jobs" / uid, f"jobs/{uid[:8]}"
        if mark in self._orders.keep:
            return
        if mark in self._orders.gone or self._age(path) >= self._orders.margin:
            self._remove(path)

    def _artifact(self, name: str) -> None:
        path, mark = self._root / "artifacts" / name, self._condemned / name
        keep = self._orders.keep
        if f"artifacts/{name}" in keep or f"jobs/{name[-8:]}" in keep:
            mark.unlink(missing_ok=True)
        elif not mark.exists():
            mark.touch()
            self._say(f"nothing names artifacts/{name}: it goes if that stays so")
        elif self._age(mark) >= self._orders.margin and self._age(path) >= self._orders.margin:
            self._remove(path)
            mark.unlink(missing_ok=True)

    def _model(self, key: str) -> None:
        entry = self._root / "models" / key
        unused = f"models/{key}" not in self._orders.keep
        for each in sorted(entry.iterdir()):
            if each.name.startswith(TURN):
                if self._age(each) >= DAY:
                    each.unlink()
            elif each.is_symlink() or not each.is_dir():
                continue
            elif each.name.startswith(PARTIAL):
                if self._newest_age(each) >= (self._orders.margin if unused else DAY):
                    self._remove(each)
            elif REVISION.fullmatch(each.name) and unused and self._orders.retention:
                self._revision(each)

    def _revision(self, folder: Path) -> None:
        if self._unused_for(folder) < self._orders.retention:
            return
        turn = Lease(folder.parent, folder.name, OWN)
        if not turn.take_if_free():
            return
        try:
            if self._unused_for(folder) >= self._orders.retention:
                self._remove(folder)
        finally:
            turn.give_back()

    def _unused_for(self, folder: Path) -> float:
        mark = folder / MARK
        return self._age(mark if mark.exists() else folder)

    def _age(self, path: Path) -> float:
        """Seconds since the last change, which nobody can set, by the volume's clock."""
        return self._now - path.lstat().st_ctime

    def _newest_age(self, folder: Path) -> float:
        return min(self._age(path) for path in (folder, *folder.rglob("*")))

    def _folders(self, kind: str, shape: re.Pattern[str]) -> Iterator[str]:
        parent = self._root / kind
        if parent.is_symlink() or not parent.is_dir():
            return
        for path in sorted(parent.iterdir()):
            if shape.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                yield path.name

    def _remove(self, path: Path) -> None:
        name = path.relative_to(self._root).as_posix()
        away = self._trash / f"{name.replace('/', '_')}-{uuid.uuid4().hex[:8]}"
        path.rename(away)
        freed = bytes_below(away)
        _delete(away)
        self._say(f"removed {name}: {freed} bytes freed")

    def _empty_trash(self) -> None:
        for path in sorted(self._trash.iterdir()):
            _delete(path)
            self._say(f"removed {path.name}, which an earlier janitor had begun with")


def _delete(folder: Path) -> None:
    # A process that lost its node may still write: new files can appear behind us.
    for attempt in range(_TRIES):
        try:
            shutil.rmtree(folder)
            return
        except FileNotFoundError:
            if not folder.exists():
                return
        except OSError:
            if attempt == _TRIES - 1:
                raise


def _time_on(folder: Path) -> float:
    """The volume's time, as it stamps a new file."""
    path = folder / f"now-{uuid.uuid4().hex[:8]}"
    path.touch()
    try:
        return path.stat().st_ctime
    finally:
        path.unlink()


def read_keep(path: Path) -> tuple[frozenset[str], frozenset[str]]:
    """What must stay, and the jobs that are gone; Refused where the list was cut."""
    count, *entries = path.read_text().rstrip("\n").split("\n")
    if not count.isdigit() or int(count) != len(entries):
        raise Refused(f"the list of what to keep is not whole: {count!r}, then {len(entries)}")
    gone = {entry for entry in entries if entry.startswith("-")}
    return frozenset(entries) - gone, frozenset(entry.removeprefix("-") for entry in gone)


def check_age(listed_at: float, now: float, longest: float) -> None:
    """Refused where the list was made too long ago, or later than now."""
    if not abs(now - listed_at) <= longest:
        raise Refused(
            f"the list of what to keep is {now - listed_at:.0f} s old by this node's clock, and "
            f"{longest:.0f} s are the most"
        )


def run(root: Path, orders: Orders, say: Say) -> ExitCode:
    """Remove what may go."""
    try:
        janitor = Janitor(root, orders, say)
        janitor.run()
    except Refused as refused:
        say(f"nothing was removed: {refused}")
        return ExitCode.USER_ERROR
    except OSError as error:
        say(f"the workspace cannot be read or written: {error.strerror}: {error.filename}")
        return ExitCode.RETRYABLE
    return ExitCode.RETRYABLE if janitor.failed else ExitCode.OK


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; every value is chosen by the operator."""
    parser = argparse.ArgumentParser(prog="finetune_trainer.janitor", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("/workspace"))
    parser.add_argument("--claim", required=True, help="uid of the claim")
    parser.add_argument("--keep", type=Path, required=True, help="file with what must stay")
    parser.add_argument("--listed-at", type=float, required=True, help="Unix time of that list")
    parser.add_argument("--list-seconds", type=float, required=True, help="its longest age")
    parser.add_argument("--margin-seconds", type=float, required=True)
    parser.add_argument("--model-retention-days", type=float, required=True, help="0: for ever")
    given = parser.parse_args(argv)
    # As the first process of a pod it would not be ended by the signal's default.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(ExitCode.RETRYABLE))

    def say(line: str) -> None:
        print(line, flush=True)

    try:
        check_age(given.listed_at, time.time(), given.list_seconds)
        keep, gone = read_keep(given.keep)
    except Refused as refused:
        say(f"nothing was removed: {refused}")
        return int(ExitCode.RETRYABLE)
    retention = given.model_retention_days * DAY
    orders = Orders(given.claim, keep, gone, given.margin_seconds, retention)
    code = run(given.root, orders, say)
    if code == ExitCode.OK:
        say(f"done, {len(keep)} things are to stay")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
