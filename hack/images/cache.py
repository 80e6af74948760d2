"""Where built things live between runs, and how they get there whole.

Virtual environments, root filesystems, image layers and models are made once and kept outside the
checkout, under a name that contains a digest of everything they were made from. An entry appears by
a rename, so a crash leaves no half-made one, and a lock per entry keeps two builds at the same time
from doing the work twice.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hack.cluster.paths import cache_dir, locked


def digest(*parts: str | bytes | Path) -> str:
    """Sixteen hex digits over `parts` in order; a Path counts as its file's content."""
    total = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part
        data = data.encode() if isinstance(data, str) else data
        total.update(hashlib.sha256(data).digest())
    return total.hexdigest()[:16]


def made(target: Path, make: Callable[[Path], None], what: str) -> Path:
    """`target`, made by `make(scratch)` if it is not there yet.

    `make` is given a free path next to the target and leaves a file or a folder at it, which is
    then renamed. Whatever a killed run left behind is removed first.
    """
    if target.exists():
        return target
    with locked(cache_dir() / "locks" / target.name):
        if target.exists():
            return target
        scratch = target.with_name(f".new-{target.name}")
        remove(scratch)
        say(f"{what} ...")
        started = time.monotonic()
        make(scratch)
        scratch.rename(target)
        say(f"{what}: {time.monotonic() - started:.1f} s")
    return target


def keep_newest(entry: Path, count: int) -> None:
    """Mark `entry` as used and remove all but the `count` last used of its kind.

    The kind is the part before the last dash of the name; the rest is the digest.
    """
    stamp = _stamp(entry)
    stamp.parent.mkdir(exist_ok=True)
    stamp.touch()
    kind = entry.name.rpartition("-")[0]
    alike = [
        path for path in entry.parent.glob(f"{kind}-*") if path.name.rpartition("-")[0] == kind
    ]
    for path in sorted(alike, key=_last_used, reverse=True)[count:]:
        remove(path)
        _stamp(path).unlink(missing_ok=True)


def _stamp(entry: Path) -> Path:
    # Not the entry's own time: another process may be packing it now, and would see it change.
    return entry.parent / ".used" / entry.name


def _last_used(entry: Path) -> float:
    stamp = _stamp(entry)
    return (stamp if stamp.exists() else entry).stat().st_mtime


def remove(path: Path) -> None:
    """Delete a file or a folder; a missing one is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def say(line: str) -> None:
    """Progress for people: stderr, because stdout carries what scripts read."""
    print(line, file=sys.stderr, flush=True)
