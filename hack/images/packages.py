"""Debian packages whose files the image needs, without installing them."""

from __future__ import annotations

from pathlib import Path

from hack.cluster.errors import ClusterError
from hack.cluster.paths import cache_dir, locked
from hack.cluster.prerequisites import apt


def download_package(package: str, folder: Path) -> None:
    """Fetch `package` (name=version) as a .deb file into `folder`, without installing it."""
    try:
        apt("download", package, folder=folder)
    except ClusterError:  # on a fresh machine apt knows no packages yet
        with locked(cache_dir() / "locks" / "apt"):
            apt("update")
        apt("download", package, folder=folder)
