"""Debian packages: programs that building needs, and files that come as a package."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from hack.images.cache import cache_root, locked, say


def need_programs(programs: dict[str, str]) -> None:
    """Install the package of each program (program -> package) that is not there yet.

    Ends with one line for the user where that is not possible: no apt, or no root.
    """
    missing = sorted({package for name, package in programs.items() if not shutil.which(name)})
    if not missing:
        return
    if not shutil.which("apt-get") or os.geteuid() != 0:
        raise SystemExit(f"please install {' '.join(missing)} (apt-get install, as root) and retry")
    say(f"installing {' '.join(missing)}")
    with locked(cache_root() / "apt"):
        _apt("update")
        _apt("install", "--yes", "--no-install-recommends", *missing)


def download_package(package: str, folder: Path) -> None:
    """Fetch `package` (name=version) as a .deb file into `folder`, without installing it."""
    if _apt("download", package, folder=folder, quietly=True):
        return
    with locked(cache_root() / "apt"):
        _apt("update")
        _apt("download", package, folder=folder)


def _apt(*arguments: str, folder: Path | None = None, quietly: bool = False) -> bool:
    """Whether apt-get worked; a failure that is not `quietly` allowed ends with its message."""
    command = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=600", *arguments]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode and not quietly:
        raise SystemExit(f"apt-get {' '.join(arguments)} failed:\n{done.stderr.strip()}")
    return done.returncode == 0
