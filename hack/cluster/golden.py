"""The golden containerd roots of the cache: each image unpacked once, then cloned by nodes.

A root is named after the digest of its set of images and never changes. A new set starts as a
clone of the root that shares most with it, so that one changed layer costs seconds; the hard
links also make ten roots hardly larger than one.
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
from collections.abc import Iterator
from pathlib import Path

from hack.cluster.images import Image, blobs, import_image, listed, remember, remembered
from hack.cluster.paths import cache_dir, locked, put
from hack.cluster.process import read_text, run, succeeds, wait_for, warn

_KEEP = 4


def folder() -> Path:
    """Where the golden roots are."""
    path = cache_dir() / "containerd"
    path.mkdir(exist_ok=True)
    return path


def ensure(images: list[Image]) -> Path:
    """The golden root with these images and those remembered; imports only what is missing."""
    with locked(folder() / ".lock"):
        wanted = remembered() | {i.reference: i.digest for i in images}
        root = _path(wanted)
        if not _is_whole(root):
            root = _build(wanted, images)
        remember(i for i in images)
        os.utime(root)
        _prune(root)
        return root


def clone(golden: Path, target: Path) -> None:
    """Make `target` a containerd root with the images of `golden`, by hard links if possible."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    tmp = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    if golden.stat().st_dev == target.parent.stat().st_dev:
        run(["cp", "-al", golden, tmp])
        for database in tmp.glob("*/*.db"):  # the only files that are written in place
            original = golden / database.relative_to(tmp)
            database.unlink()
            shutil.copy2(original, database)
    else:
        run(["cp", "-a", "--reflink=auto", golden, tmp])
    (tmp / "images.json").unlink(missing_ok=True)
    tmp.rename(target)


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
        clone(base, tmp)
    tmp.mkdir(exist_ok=True)
    present = _fill(tmp, wanted, images)
    for name in wanted.keys() - present.keys():
        warn(f"{name} is not in the cache any more: build it again before a pod needs it")
    root = _path(present)
    if _is_whole(root):
        shutil.rmtree(tmp)
        return root
    put(tmp / "images.json", json.dumps(present, indent=1, sort_keys=True))
    shutil.rmtree(root, ignore_errors=True)
    tmp.rename(root)
    return root


def _fill(root: Path, wanted: dict[str, str], images: list[Image]) -> dict[str, str]:
    with _containerd(root) as ctr:
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
def _containerd(root: Path) -> Iterator[list[str]]:
    """A containerd of its own on `root`, as the command prefix of `ctr`."""
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
    roots = sorted((p for p in folder().iterdir() if p.is_dir()), key=lambda p: -p.stat().st_mtime)
    for root in roots[_KEEP:]:
        if root != used:
            shutil.rmtree(root, ignore_errors=True)
