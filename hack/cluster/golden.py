"""The golden containerd roots of the cache: each image unpacked once, then cloned by nodes.

A root is named after the digest of its set of images and never changes. Its unpacked layers are
in a pool that all roots share, and roots name them by symbolic links: layers are only ever read,
so a new root or a node costs a handful of links, not a hundred thousand, and a changed image
costs only its changed layers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from hack.cluster.images import Image, blobs, import_image, listed, remember, remembered
from hack.cluster.paths import cache_dir, locked, put
from hack.cluster.prerequisites import install
from hack.cluster.process import read_text, run, succeeds, wait_for, warn

_KEEP = 4
_POOL = "layers"
_USER = "used-by"
_SNAPSHOTTER = "io.containerd.snapshotter.v1.overlayfs"


def folder() -> Path:
    """Where the golden roots are, with their pool of layers."""
    path = cache_dir() / "containerd-roots"
    (path / _POOL).mkdir(parents=True, exist_ok=True)
    return path


def ensure(images: list[Image]) -> Path:
    """The golden root with these images and those remembered; imports only what is missing."""
    with locked(folder() / ".lock"):
        wanted = remembered() | {i.reference: i.digest for i in images}
        root = _path(wanted)
        if not _is_whole(root):
            root = _build(wanted, images)
        remember(images)
        os.utime(root)
        _prune(root)
        return root


def clone(golden: Path, target: Path, user: Path) -> None:
    """Make `target` a node's containerd root; `golden` is kept while the folder `user` exists."""
    if not target.exists():
        put(golden / _USER, str(user))
        copy_root(golden, target)


def copy_root(golden: Path, target: Path) -> None:
    """Make `target` a root of its own with the images of `golden`."""
    tmp = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    for part in golden.iterdir():
        if part.name == _SNAPSHOTTER:
            snapshots = tmp / _SNAPSHOTTER / "snapshots"
            snapshots.mkdir(parents=True, mode=0o700)
            shutil.copy2(part / "metadata.db", tmp / _SNAPSHOTTER)
            for layer in (part / "snapshots").iterdir():
                (snapshots / layer.name).symlink_to(layer.readlink())
        elif part.is_dir():
            _copy(part, tmp / part.name)
    tmp.rename(target)


def _copy(source: Path, target: Path) -> None:
    """Copy a folder of containerd by hard links where that is possible."""
    if source.stat().st_dev != target.parent.stat().st_dev:
        run(["cp", "-a", "--reflink=auto", source, target])
        return
    run(["cp", "-al", source, target])
    for database in target.glob("*.db"):  # the only files that are written in place
        database.unlink()
        shutil.copy2(source / database.name, database)


def _move_layers_to_pool(root: Path) -> None:
    for layer in (root / _SNAPSHOTTER / "snapshots").iterdir():
        if not layer.is_symlink():
            pooled = folder() / _POOL / uuid.uuid4().hex
            layer.rename(pooled)
            layer.symlink_to(pooled)


def _path(wanted: dict[str, str]) -> Path:
    return folder() / hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]


def _is_whole(root: Path) -> bool:
    return (root / "images.json").exists()  # written last


def _content(root: Path) -> dict[str, str]:
    text = read_text(root / "images.json")
    found: dict[str, str] = json.loads(text) if text else {}
    return found


def _build(wanted: dict[str, str], images: list[Image]) -> Path:
    roots = [p for p in folder().iterdir() if _is_whole(p)]
    base = max(roots, key=lambda p: len(_content(p).items() & wanted.items()), default=None)
    tmp = folder() / "new.tmp"
    shutil.rmtree(tmp, ignore_errors=True)
    if base:
        copy_root(base, tmp)
    tmp.mkdir(exist_ok=True)
    present = _fill(tmp, wanted, images)
    for name in wanted.keys() - present.keys():
        warn(f"{name} is not in the cache any more: build it again before a pod needs it")
    root = _path(present)
    if _is_whole(root):
        shutil.rmtree(tmp)
        return root
    _move_layers_to_pool(tmp)
    put(tmp / "images.json", json.dumps(present, indent=1, sort_keys=True))
    shutil.rmtree(root, ignore_errors=True)
    tmp.rename(root)
    return root


def _fill(root: Path, wanted: dict[str, str], images: list[Image]) -> dict[str, str]:
    with serve(root) as ctr:
        present = listed(run([*ctr, "images", "ls"]))
        for image in images:
            if present.get(image.reference) != image.digest:
                import_image(ctr, image, blobs(root))
        present = listed(run([*ctr, "images", "ls"]))
        for name in [n for n, digest in present.items() if wanted.get(n) != digest]:
            run([*ctr, "images", "rm", "--sync", name])
            del present[name]
    return present


@contextlib.contextmanager
def serve(root: Path) -> Iterator[list[str]]:
    """A containerd of its own on `root`, as the command prefix of `ctr`."""
    install(["containerd", "runc"])
    disabled = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
    with tempfile.TemporaryDirectory(prefix="golden-") as name:  # a socket's path must be short
        state = Path(name)
        socket = state / "c.sock"
        lines = [
            "version = 2",
            f"root = {json.dumps(str(root))}",
            f"state = {json.dumps(str(state / 'state'))}",
            f"disabled_plugins = {json.dumps(disabled)}",
            f"[grpc]\naddress = {json.dumps(str(socket))}",
        ]
        config = put(state / "config.toml", "\n".join(lines) + "\n")
        own = ["unshare", "-m", "-p", "-f", "--kill-child", "--mount-proc"]
        with (state / "log").open("wb") as log:
            process = subprocess.Popen([*own, "containerd", "-c", config], stdout=log, stderr=log)
        ctr = ["ctr", "-a", str(socket), "-n", "k8s.io"]
        try:
            wait_for(lambda: succeeds([*ctr, "version"]), 30, "the containerd of the image cache")
            yield ctr
        finally:
            _end_child(process)


def _end_child(process: subprocess.Popen[bytes]) -> None:
    # unshare ignores the polite signal, so it goes to its child; unshare ends after it.
    for pid in read_text(f"/proc/{process.pid}/task/{process.pid}/children").split():
        os.kill(int(pid), signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _prune(used: Path) -> None:
    roots = [p for p in folder().iterdir() if _is_whole(p)]
    roots.sort(key=lambda p: p.stat().st_mtime, reverse=True)
    for root in roots[_KEEP:]:
        user = read_text(root / _USER)
        if root != used and not (user and Path(user).exists()):
            shutil.rmtree(root)
    snapshots = f"{_SNAPSHOTTER}/snapshots/*"
    named = {p.readlink().name for r in roots if r.exists() for p in r.glob(snapshots)}
    for layer in (folder() / _POOL).iterdir():
        if layer.name not in named:
            shutil.rmtree(layer, ignore_errors=True)
