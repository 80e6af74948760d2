"""Image layers: plain tar files in the cache, each with its digest.

Layers are not compressed: they travel from this machine's disk to this machine's containerd, and
compressing three gigabytes would take longer than everything else together.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from hack.cluster.paths import cache_dir
from hack.images import rootfs
from hack.images.cache import digest, keep_newest, made
from hack.images.venv import (
    RECIPE,
    SYSTEM_PYTHON,
    SYSTEM_VERSION,
    check_system_python,
    compile_modules,
    create_venv,
    install_locked,
    ml_digest,
    ml_venv,
)

CHECKOUT = Path(__file__).parents[2]
OPERATOR_LOCK = CHECKOUT / "operator" / "requirements.lock"
CODE_AT = "app"
# How many layers of a kind stay in the cache: a change back and forth should cost nothing, but
# libraries are gigabytes and code is not even one megabyte.
KEEP_LIBRARIES = 2
KEEP_CODE = 40
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Layer:
    """An uncompressed layer: its tar file, `sha256:...` over it, and its size in bytes."""

    tar: Path
    digest: str
    size: int

    def write(self, stream: BinaryIO) -> None:
        """Copy the tar to `stream`."""
        with self.tar.open("rb") as source:
            while chunk := source.read(_CHUNK):
                stream.write(chunk)


def base_layer() -> Layer:
    """Debian with Python."""
    tar = rootfs.rootfs()
    return _layer(f"base-{tar.stem}", "layer of the base", lambda: ["cat", str(tar)])


def ml_layer() -> Layer:
    """The CPU libraries at /opt/venv."""
    return _layer(
        f"ml-{ml_digest()}", "layer of the CPU libraries", lambda: _tar(ml_venv(), "opt/venv")
    )


def operator_layer() -> Layer:
    """The operator's libraries at /opt/venv."""
    name = digest(OPERATOR_LOCK, str(RECIPE), repr(SYSTEM_VERSION))
    home = cache_dir() / f"venv-operator-{name}"

    def pack() -> list[str]:
        made(home, _build_operator_venv, "Python libraries of the operator")
        return _tar(home, "opt/venv")

    return _layer(f"operator-{name}", "layer of the operator's libraries", pack)


def code_layer(packages: Sequence[Path]) -> Layer:
    """Our own `packages` at /app, compiled; a new layer whenever one of their files changes."""
    files = {
        f"{package.name}/{path.relative_to(package)}": path
        for package in packages
        for path in sources(package)
    }
    parts = [part for name, path in files.items() for part in (name, path)]
    with TemporaryDirectory() as scratch:

        def pack() -> list[str]:
            _stage(files, Path(scratch))
            return _tar(Path(scratch), CODE_AT, "--mtime=@0")

        return _layer(f"code-{digest(repr(SYSTEM_VERSION), *parts)}", "layer of our code", pack)


def sources(package: Path) -> list[Path]:
    """The files of a package that belong into an image."""
    found = (path for path in package.rglob("*") if "__pycache__" not in path.parts)
    return sorted(path for path in found if path.is_file())


def _stage(files: dict[str, Path], stage: Path) -> None:
    """Copy `files` to `stage` under their names and compile them for a read-only root.

    The compiled files carry a hash of their source, not its time: the layer's bytes then depend on
    nothing but the code.
    """
    check_system_python()
    for name, path in files.items():
        target = stage / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    command = [str(SYSTEM_PYTHON), "-m", "compileall", "-q", "-s", str(stage), "-p", f"/{CODE_AT}"]
    subprocess.run([*command, "--invalidation-mode", "unchecked-hash", str(stage)], check=True)


def _build_operator_venv(scratch: Path) -> None:
    check_system_python()
    create_venv(scratch, SYSTEM_PYTHON)
    install_locked(scratch / "bin" / "python", OPERATOR_LOCK)
    compile_modules(scratch)


def _tar(folder: Path, name: str, *options: str) -> list[str]:
    """A command that writes `folder` as `name`, owned by root and readable by all, to stdout."""
    command = ["tar", "--create", "--sort=name", "--format=gnu", "--hard-dereference"]
    command += ["--owner=0", "--group=0", "--numeric-owner", "--mode=u+rwX,go=rX", *options]
    return [*command, f"--transform=s,^\\.,{name},S", "--directory", str(folder), "."]


def _layer(name: str, what: str, pack: Callable[[], list[str]]) -> Layer:
    """The cached layer `name`; `pack()` gives the command that writes its tar to stdout."""
    home = cache_dir() / "layers" / name
    home.parent.mkdir(exist_ok=True)
    made(home, lambda scratch: _write(scratch, pack()), what)
    keep_newest(home, KEEP_CODE if name.startswith("code-") else KEEP_LIBRARIES)
    tar = home / "layer.tar"
    return Layer(tar, (home / "digest").read_text(), tar.stat().st_size)


def _write(scratch: Path, command: list[str]) -> None:
    scratch.mkdir()
    total = hashlib.sha256()
    with (
        (scratch / "layer.tar").open("wb") as target,
        subprocess.Popen(command, stdout=subprocess.PIPE) as process,
    ):
        assert process.stdout is not None
        while chunk := process.stdout.read(_CHUNK):
            total.update(chunk)
            target.write(chunk)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    (scratch / "digest").write_text(f"sha256:{total.hexdigest()}")
