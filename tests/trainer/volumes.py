"""Volumes for tests: of two megabytes, with a server that does not answer, with old listings."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from tests.trainer.jobs import environment

SMALL = 2 * 2**20
"""Bytes of the volume of a test."""


def on_small_volume(folder: Path, code: str) -> str:
    """Output of a Python process with the folder `there` on a small volume of its own."""
    root = [] if os.getuid() == 0 else ["--map-root-user"]
    mount = f'mount -t tmpfs -o size={SMALL} tmpfs "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "--mount", *root, "sh", "-c", mount, "-", folder, sys.executable, code],
        env=environment(),
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def fail_as_stale(folder: Path) -> None:
    """In place of `shutil.disk_usage`, on a volume whose server has lost the folder."""
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(folder))


@contextlib.contextmanager
def stale_listings(listings: dict[Path, list[str]]) -> Iterator[None]:
    """Folders are listed as they were when `remember_listings` saw them, as an NFS client may."""
    listdir, scandir = os.listdir, os.scandir

    def list_as_before(path: Any = ".") -> list[str]:
        names = listdir(path)
        return listings.get(Path(path), names)

    def scan_as_before(path: Any = ".") -> Any:
        entries = [each for each in scandir(path) if each.name in list_as_before(path)]
        return contextlib.nullcontext(iter(entries))

    with (
        mock.patch.object(os, "listdir", list_as_before),
        mock.patch.object(os, "scandir", scan_as_before),
    ):
        yield


def remember_listings(folder: Path) -> dict[Path, list[str]]:
    """The names in a folder and in those below it."""
    return {Path(here): [*folders, *files] for here, folders, files in os.walk(folder)}
