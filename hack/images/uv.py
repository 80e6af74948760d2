"""The one version of uv that resolves, locks and installs everything here.

uv comes as a package, so a plain Python with venv is enough to start from, and its hashes are those
that the Dockerfiles check. `python3 -m hack.images.uv` prints its path, for the Makefile.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from hack.cluster.errors import ClusterError
from hack.cluster.paths import cache_dir
from hack.cluster.prerequisites import install
from hack.images.cache import made

LOCK = Path(__file__).resolve().parents[1] / "requirements" / "bootstrap.lock"
UV_VERSION = LOCK.read_text().split(maxsplit=1)[0].removeprefix("uv==")


def uv() -> Path:
    """Path of the uv executable, installed on first use."""
    home = cache_dir() / f"uv-{UV_VERSION}"
    return made(home, _install, f"uv {UV_VERSION}") / "bin" / "uv"


def _install(scratch: Path) -> None:
    if not importlib.util.find_spec("ensurepip"):
        install(["python3-venv"])
    subprocess.run([sys.executable, "-m", "venv", str(scratch)], check=True)
    pip = [str(scratch / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    locked = ["--disable-pip-version-check", "--require-hashes", "-r", str(LOCK)]
    subprocess.run([*pip, *locked], check=True)


if __name__ == "__main__":
    try:
        print(uv())
    except (ClusterError, subprocess.CalledProcessError) as error:
        sys.exit(f"uv {UV_VERSION} could not be installed: {error}")
