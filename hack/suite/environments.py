"""Test libraries for the ML environment, which itself holds nothing but what the image holds.

pytest and its companions, and the packages that carry released chat templates, are installed into a
folder of their own, named by the digest of their locks, and put on the path of the ML environment's
interpreter.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from hack.cluster.paths import cache_dir
from hack.images.cache import digest, made
from hack.images.uv import uv
from hack.images.venv import ml_python

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements"
LOCKS = (REQUIREMENTS / "trainer-test.lock", REQUIREMENTS / "chat-templates.lock")


def test_libraries() -> Path:
    """Folder with pytest for the ML environment, installed on first use."""
    target = cache_dir() / f"testlibs-{digest(*LOCKS)}"
    return made(target, _install, "test libraries of the trainer")


def _install(scratch: Path) -> None:
    command = [str(uv()), "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    place = ["--python", str(ml_python()), "--target", str(scratch)]
    locks = [argument for lock in LOCKS for argument in ("-r", str(lock))]
    subprocess.run([*command, *place, *locks], check=True)


if __name__ == "__main__":
    print(test_libraries())
