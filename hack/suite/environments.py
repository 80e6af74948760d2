"""Test libraries for the ML environment, which itself holds nothing but what the image holds.

pytest and its companions are installed into a folder of their own, named by the digest of their
lock, and put on the path of the ML environment's interpreter.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from hack.cluster.paths import cache_dir
from hack.images.cache import digest, made
from hack.images.uv import uv
from hack.images.venv import ml_python

LOCK = Path(__file__).resolve().parents[2] / "requirements" / "trainer-test.lock"


def test_libraries() -> Path:
    """Folder with pytest for the ML environment, installed on first use."""
    target = cache_dir() / f"testlibs-{digest(LOCK)}"
    return made(target, _install, "test libraries of the trainer")


def _install(scratch: Path) -> None:
    command = [str(uv()), "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    place = ["--python", str(ml_python()), "--target", str(scratch), "-r", str(LOCK)]
    subprocess.run([*command, *place], check=True)


if __name__ == "__main__":
    print(test_libraries())
