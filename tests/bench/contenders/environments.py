"""Environments of the contenders of `make bench-trainer`, each with its own locked libraries.

They use the same Python and the same PyTorch build as the trainer's (hack.images.venv), with the
same stubs of the GPU libraries, so a difference in speed comes from training code.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hack.cluster.paths import cache_dir
from hack.cluster.prerequisites import install
from hack.images import cuda_stubs, venv
from hack.images.cache import digest, made

REQUIREMENTS = Path(__file__).resolve().parents[3] / "requirements"


def python_of(name: str) -> Path:
    """Interpreter of the environment that requirements/bench-<name>.lock describes."""
    lock = REQUIREMENTS / f"bench-{name}.lock"
    home = cache_dir() / f"venv-bench-{name}-{digest(lock, Path(cuda_stubs.__file__))}"
    made(home, lambda scratch: _build(scratch, lock), f"Python libraries of {name}")
    return home / "bin" / "python"


def _build(scratch: Path, lock: Path) -> None:
    install(["gcc", "libc6-dev", "binutils", "python3"])
    venv.check_system_python()
    venv.create_venv(scratch, venv.SYSTEM_PYTHON)
    venv.install_locked(scratch / "bin" / "python", lock)
    cuda_stubs.stub_cuda(venv.site_packages(scratch) / "torch" / "lib")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(python_of(name))
