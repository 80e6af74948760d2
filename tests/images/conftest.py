"""A containerd of the tests' own, which starts with the local images and is thrown away."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hack.cluster import golden, kind
from hack.cluster.images import Image, blobs, import_image, listed
from hack.cluster.paths import cache_dir
from hack.cluster.process import run
from hack.images.catalog import NAMES
from hack.images.load import as_cluster_image

# With kind Docker builds these images, and the end-to-end tests start them.
collect_ignore = ["test_local_images.py"] if kind.possible() else []


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
    root = cache_dir() / f"images-test-{os.getpid()}"
    golden.copy_root(golden.ensure([as_cluster_image(name) for name in NAMES]), root)
    try:
        with golden.serve(root) as ctr:
            yield Containerd(ctr, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
