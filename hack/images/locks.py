"""Resolve the libraries of the local images again; `make lock` does the product's own lists."""

from __future__ import annotations

import subprocess
from pathlib import Path

from hack.images.layers import CHECKOUT
from hack.images.uv import uv

HERE = Path(__file__).parent
LEAVE_OUT = ("--excludes", "ml-excludes.txt", "--override", "ml-overrides.txt")
PLATFORM = ("--python-platform", "x86_64-manylinux_2_36")


def lock() -> None:
    """Write requirements.ml.lock and the locks of the contenders and of uv, with hashes."""
    _compile(HERE, "requirements.ml.in", "requirements.ml.lock", *PLATFORM, *LEAVE_OUT)
    for name in ("trl", "llamafactory"):
        leave_out = ("--excludes", "bench-excludes.txt")
        files = (f"bench-{name}.in", f"bench-{name}.lock")
        _compile(CHECKOUT / "requirements", *files, *PLATFORM, *leave_out)
    _compile(CHECKOUT / "hack" / "requirements", "bootstrap.in", "bootstrap.lock")


def _compile(folder: Path, source: str, target: str, *options: str) -> None:
    command = [str(uv()), "pip", "compile", "--quiet", "--upgrade", "--generate-hashes"]
    command += ["--no-header", "--no-emit-index-url", "--no-emit-find-links"]
    command += ["--python-version", "3.11", *options, source, "--output-file", target]
    subprocess.run(command, check=True, cwd=folder)
