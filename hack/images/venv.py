"""The virtual environment with PyTorch, DeepSpeed and vLLM for the local CPU cluster.

The same tree serves twice: tests run the trainer with it on this machine, and it is the layer
/opt/venv of the images. So it is relocatable, and it uses Debian 12's own Python, which is
also in the image's base. All modules are compiled beforehand, because a container with a read-only
root would otherwise compile them at each start.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

from hack.cluster.paths import cache_dir
from hack.cluster.prerequisites import install
from hack.images import cuda_stubs
from hack.images.cache import digest, keep_newest, made, say
from hack.images.uv import UV_VERSION, uv

HERE = Path(__file__).parent
LOCK = HERE / "requirements.ml.lock"
SYSTEM_PYTHON = Path("/usr/bin/python3")
SYSTEM_VERSION = (3, 11)

# Raise this when what _build does changes, so that no checkout keeps using an older environment.
RECIPE = 4
# How many environments stay in the cache, each a few gigabytes.
KEEP = 2


def ml_venv() -> Path:
    """The environment's folder, built when its lock or its recipe is new."""
    home = cache_dir() / f"venv-ml-{ml_digest()}"
    made(home, _build, "Python libraries for training and serving on CPUs")
    keep_newest(home, KEEP)
    return home


def ml_python() -> Path:
    """The environment's interpreter."""
    return ml_venv() / "bin" / "python"


def ml_digest() -> str:
    """Names everything that the environment is made from."""
    build = [str(RECIPE), UV_VERSION, repr(SYSTEM_VERSION), platform.machine()]
    return digest(LOCK, HERE / "cuda_stubs.py", *build)


def _build(scratch: Path) -> None:
    install(["gcc", "libc6-dev", "binutils", "python3"])
    check_system_python()
    create_venv(scratch, SYSTEM_PYTHON)
    install_locked(scratch / "bin" / "python", LOCK)
    site = site_packages(scratch)
    for library in (site / "bitsandbytes").glob("libbitsandbytes_*.so"):
        if "cpu" not in library.name:
            library.unlink()
    count = cuda_stubs.stub_cuda(site / "torch" / "lib")
    say(f"  {count} CUDA functions replaced by stubs")
    compile_modules(scratch)
    imports = [str(scratch / "bin" / "python"), "-c", "import torch, deepspeed, bitsandbytes, vllm"]
    subprocess.run(imports, check=True, stdout=sys.stderr)


def create_venv(home: Path, python: Path) -> None:
    """An empty environment at `home` that may be moved afterwards."""
    command = [str(uv()), "venv", "--quiet", "--relocatable", "--python", str(python), str(home)]
    subprocess.run(command, check=True)


def install_locked(python: Path, lock: Path) -> None:
    """Install exactly what `lock` lists, every file checked against its hash.

    Nothing else is resolved: the lock leaves out libraries on purpose.
    """
    command = [str(uv()), "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    subprocess.run([*command, "--python", str(python), "-r", str(lock)], check=True)


def site_packages(home: Path) -> Path:
    """Where the environment's libraries lie."""
    return home / "lib" / f"python{SYSTEM_VERSION[0]}.{SYSTEM_VERSION[1]}" / "site-packages"


def compile_modules(folder: Path) -> None:
    """Byte-compile everything below `folder` with the Python that will run it.

    A few packages carry templates that are no valid Python: they are left as they are.
    """
    command = [str(SYSTEM_PYTHON), "-m", "compileall", "-q", "-j", "0", str(folder)]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)


def check_system_python() -> None:
    want = ".".join(map(str, SYSTEM_VERSION))
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    command = [str(SYSTEM_PYTHON), "-c", code]
    found = "none"
    if SYSTEM_PYTHON.exists():
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    if found != want:
        raise SystemExit(
            f"{SYSTEM_PYTHON} is Python {found}, but the local images need Python {want} "
            "(Debian 12), also where Docker builds the images. Use a Debian 12 machine."
        )
