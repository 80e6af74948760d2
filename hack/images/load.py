"""Bring the images to the local cluster, doing only what a change makes necessary.

Without Docker the layers go straight into containerd: into the roots that nodes start from, and
into nodes that run. Where kind is the cluster's engine, Docker builds Dockerfiles and kind takes
the images into its nodes.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from hack.cluster import engine, kind
from hack.cluster.images import Image
from hack.cluster.kubectl import ready_nodes
from hack.images import docker
from hack.images.cache import say
from hack.images.catalog import NAMES, image, reference
from hack.images.layers import CHECKOUT

CPU_DOCKERFILE = Path(__file__).parent / "cpu.Dockerfile"
OPERATOR_DOCKERFILE = CHECKOUT / "operator" / "Dockerfile"


def load(names: Sequence[str] = NAMES) -> None:
    """Build the images `names` and make them available to the cluster.

    kind can only take them while it runs: before that, this builds them and says so.
    """
    if kind.possible():
        _load_into_kind(names)
    else:
        engine.load([as_cluster_image(name) for name in names])


def as_cluster_image(name: str) -> Image:
    """The image `name` as a cluster of namespaces takes it."""
    built = image(name)
    return Image(built.reference, built.digest, built.write)


def _load_into_kind(names: Sequence[str]) -> None:
    for name in names:
        if name == "operator":
            docker.build(OPERATOR_DOCKERFILE, reference(name))
        else:
            docker.build(CPU_DOCKERFILE, reference(name), target=name)
    if not ready_nodes():
        say("the images are built; load them again when the cluster runs (make images)")
        return
    references = [reference(name) for name in names]
    command = ["kind", "load", "docker-image", "--name", kind.NAME, *references]
    subprocess.run(command, check=True)
