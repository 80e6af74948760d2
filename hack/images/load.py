"""Bring the images to the local cluster, doing only what a change makes necessary.

Without Docker the layers go straight into containerd: into the roots that nodes start from, and
into nodes that run. Where kind is the cluster's engine, Docker builds the Dockerfiles instead.
"""

from __future__ import annotations

from collections.abc import Sequence

from hack.cluster import engine
from hack.cluster.images import Image
from hack.images.catalog import NAMES, image


def load(names: Sequence[str] = NAMES) -> None:
    """Build the images `names` and make them available to the cluster, running or not."""
    engine.load([as_cluster_image(name) for name in names])


def as_cluster_image(name: str) -> Image:
    """The image `name` as the cluster takes it."""
    built = image(name)
    return Image(built.reference, built.digest, built.write)
