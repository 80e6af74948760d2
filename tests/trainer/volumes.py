"""Volumes for tests: one of two megabytes, and one whose server does not answer."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

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
