"""The one version of uv that resolves, locks and installs everything here.

uv comes as a package, so a plain Python with venv is enough to start from. The Makefile uses the
same folder.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hack.images.cache import cache_root, made

UV_VERSION = "0.13.9"


def uv() -> Path:
    """Path of the uv executable, installed on first use."""
    home = cache_root() / f"uv-{UV_VERSION}"
    return made(home, _install, f"uv {UV_VERSION}") / "bin" / "uv"


def _install(scratch: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(scratch)], check=True)
    pip = [str(scratch / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--disable-pip-version-check", f"uv=={UV_VERSION}"], check=True)
