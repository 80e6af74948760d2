"""The cluster's programs, built once from pinned Go modules and cached by content.

Every version is in `gomod/*/go.mod` and every source's checksum in the `go.sum` next to it. The
cache folder is named after a digest of those files, the compiler flags and the Go version, and each
program appears in it by rename, so a program that exists is whole: a crash or a second build at the
same time is harmless. Nothing but Go is needed, no C compiler.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hack.cluster.errors import ClusterError
from hack.cluster.paths import cache_dir, locked
from hack.cluster.process import run

HERE = Path(__file__).resolve().parent
KUBERNETES = "v1.35.4"
HELM = "v3.21.4"


@dataclass(frozen=True)
class Program:
    """One program: the folder of the Go module that pins it, its package, its linker variables."""

    name: str
    module: Path
    package: str
    variables: tuple[str, ...] = ()

    def command(self, output: Path) -> list[str]:
        """The `go build` command that writes this program to `output`."""
        linker = " ".join(["-s", "-w", *(f"-X {v}" for v in self.variables)])
        flags = ["-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", linker]
        return ["go", "build", *flags, "-o", str(output), self.package]


def _kubernetes(name: str) -> Program:
    major, minor, _ = KUBERNETES.removeprefix("v").split(".")
    values = {"gitVersion": KUBERNETES, "gitMajor": major, "gitMinor": minor}
    variables = tuple(f"k8s.io/component-base/version.{k}={v}" for k, v in values.items())
    return Program(name, HERE / "gomod/kubernetes", f"k8s.io/kubernetes/cmd/{name}", variables)


# In the order of need: tests that need only an API server can start while the rest is being built.
PROGRAMS = {
    p.name: p
    for p in (
        Program("etcd", HERE / "gomod/etcd", "."),
        _kubernetes("kube-apiserver"),
        _kubernetes("kubectl"),
        _kubernetes("kube-controller-manager"),
        _kubernetes("kubelet"),
        _kubernetes("kube-scheduler"),
        _kubernetes("kube-proxy"),
        Program(
            "helm",
            HERE / "gomod/helm",
            "helm.sh/helm/v3/cmd/helm",
            (f"helm.sh/helm/v3/internal/version.version={HELM}",),
        ),
        Program("coredns", HERE / "gomod/coredns", "."),
    )
}


def _environment() -> dict[str, str]:
    # GOFLAGS of the user could add tags or -mod: the flags that count are those of Program.command.
    return {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": ""}


def digest_of(programs: Iterable[Program]) -> str:
    """What decides these programs' bytes, as 16 hexadecimal digits: sources, flags, Go version."""
    if not shutil.which("go"):
        raise ClusterError(
            "Go is not installed: Kubernetes is built from source, so install Go 1.26 or newer "
            "(https://go.dev/dl) and run this again"
        )
    listed = list(programs)
    version = run(["go", "version"], env=_environment(), cwd=listed[0].module)
    digest = hashlib.sha256(version.encode())
    for each in listed:
        digest.update("\0".join(each.command(Path(each.name))).encode())
        for path in sorted(each.module.iterdir()):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def folder() -> Path:
    """The cache folder of exactly these programs; it may be empty, see `ensure`."""
    return cache_dir() / f"bin-{digest_of(PROGRAMS.values())}"


def ensure(names: Iterable[str] = tuple(PROGRAMS)) -> Path:
    """Build what is missing of `names` and return the folder that holds them."""
    where = folder()
    if missing := [n for n in names if not (where / n).exists()]:
        with locked(where / ".lock"):
            for name in missing:
                _build(PROGRAMS[name], where)
    return where


def program(name: str) -> Path:
    """The path of one program, built if need be."""
    return ensure([name]) / name


def built(wanted: Program, folder: str) -> Path:
    """A program that is not one of PROGRAMS: its path below `folder`-DIGEST in the cache."""
    target = cache_dir() / f"{folder}-{digest_of([wanted])}" / wanted.name
    if not target.exists():
        with locked(target.parent / ".lock"):
            _build(wanted, target.parent)
    return target


def _compile(wanted: Program, target: Path) -> None:
    tmp = target.with_name(f".{target.name}.tmp")
    run(wanted.command(tmp), env=_environment(), cwd=wanted.module)
    tmp.rename(target)


def _build(wanted: Program, where: Path) -> None:
    target = where / wanted.name
    if target.exists():  # another process built it while we waited for the lock
        return
    began = time.monotonic()
    _compile(wanted, target)
    size, took = target.stat().st_size / 1e6, time.monotonic() - began
    print(f"  built {wanted.name:<26} {size:4.0f} MB {took:6.1f} s", flush=True)
