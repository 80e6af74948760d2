"""Where things live: state inside the checkout, caches outside of it.

State (`.cluster/`) belongs to one checkout and dies with `down`. Caches are content-addressed,
shared by every checkout of a user, may be empty at any time, and are only ever filled by tmp +
rename.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
STATE = CHECKOUT / ".cluster"
KUBECONFIG = STATE / "kubeconfig"
VOLUMES = STATE / "volumes"


def cache_dir() -> Path:
    """The folder `${XDG_CACHE_HOME:-~/.cache}/finetune-operator`, made if missing."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = Path(base) / "finetune-operator"
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the kernel frees it however the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def put(path: Path, text: str, mode: int = 0o644) -> Path:
    """Write `text` to `path` atomically, with its folders, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{os.getpid()}")
    tmp.write_text(text)
    tmp.chmod(mode)
    tmp.rename(path)
    return path
