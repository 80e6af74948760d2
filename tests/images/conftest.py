"""A containerd of the tests' own, which starts with the local images and is thrown away."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hack.cluster import golden, kind
from hack.cluster.images import Image, blobs, import_image, listed
from hack.cluster.paths import cache_dir
from hack.cluster.process import run, succeeds, wait_for
from hack.images.catalog import NAMES
from hack.images.load import as_cluster_image


@dataclass(frozen=True)
class Containerd:
    """A running containerd: the command prefix of its `ctr`, and its root folder."""

    ctr: list[str]
    root: Path

    def load(self, image: Image) -> None:
        """Import and unpack an image, leaving out the layers that are here."""
        import_image(self.ctr, image, blobs(self.root))

    def images(self) -> dict[str, str]:
        """Names and digests of the images that are here."""
        return listed(run([*self.ctr, "images", "ls"]))

    def start(self, reference: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run `command` in a container whose root is read-only and which has only /tmp."""
        mount = "type=tmpfs,src=tmpfs,dst=/tmp,options=rw:mode=1777"
        argv = [*self.ctr, "run", "--rm", "--read-only", "--mount", mount, reference]
        name = f"test-{os.getpid()}"
        return subprocess.run(
            [*argv, name, *command], capture_output=True, text=True, timeout=120, check=False
        )


def need_root() -> None:
    """Skip where nothing can be started: building in namespaces takes root."""
    if os.geteuid() != 0:
        pytest.skip("building and starting images without Docker needs root")


@pytest.fixture(scope="session")
def containerd() -> Iterator[Containerd]:
    """A containerd that holds the local images, cloned from the root that nodes start from."""
    need_root()
    if kind.possible():
        pytest.skip("Docker and kind build the local images here")
    root = cache_dir() / f"images-test-{os.getpid()}"
    _copy(golden.ensure([as_cluster_image(name) for name in NAMES]), root)
    state = Path(tempfile.mkdtemp(prefix="ft-"))
    process = _serve(root, state)
    ctr = ["ctr", "--address", str(state / "c.sock"), "--namespace", "k8s.io"]
    try:
        wait_for(lambda: succeeds([*ctr, "version"]), 30, "the containerd of the tests")
        yield Containerd(ctr, root)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(state, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    """Copy a root of containerd: links for what is never written in place, else real copies."""
    run(["cp", "-al", str(source), str(target)])
    for database in target.glob("*/*.db"):
        database.unlink()
        shutil.copy2(source / database.relative_to(target), database)


def _serve(root: Path, state: Path) -> subprocess.Popen[bytes]:
    config = [
        "version = 2",
        f"root = {json.dumps(str(root))}",
        f"state = {json.dumps(str(state / 'state'))}",
        'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]',
        f"[grpc]\naddress = {json.dumps(str(state / 'c.sock'))}",
    ]
    (state / "config.toml").write_text("\n".join(config) + "\n")
    # The death of this process takes the containers and mounts of its namespaces along.
    own = ["unshare", "-m", "-p", "-f", "--kill-child", "--mount-proc"]
    with (state / "log").open("wb") as log:
        command = [*own, "containerd", "--config", str(state / "config.toml")]
        return subprocess.Popen(command, stdout=log, stderr=log)
