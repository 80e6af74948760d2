"""Resolve the libraries of the local images anew; `make lock` does the product's own lists."""

from __future__ import annotations

import subprocess
from pathlib import Path

from hack.images.layers import CHECKOUT
from hack.images.uv import uv

HERE = Path(__file__).parent
LEAVE_OUT = ("--excludes", "ml-excludes.txt", "--override", "ml-overrides.txt")


def lock() -> None:
    """Write requirements.ml.lock and the lock of uv, with the hash of every file."""
    platform = ("--python-platform", "x86_64-manylinux_2_36")
    _compile(HERE, "requirements.ml.in", "requirements.ml.lock", *platform, *LEAVE_OUT)
    _compile(CHECKOUT / "hack" / "requirements", "bootstrap.in", "bootstrap.lock")


def _compile(folder: Path, source: str, target: str, *options: str) -> None:
    command = [str(uv()), "pip", "compile", "--quiet", "--upgrade", "--generate-hashes"]
    command += ["--no-header", "--no-emit-index-url", "--no-emit-find-links"]
    command += ["--python-version", "3.11", *options, source, "--output-file", target]
    subprocess.run(command, check=True, cwd=folder)
