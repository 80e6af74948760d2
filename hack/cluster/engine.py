"""Which engine runs the cluster on this machine, and what every engine can do."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Protocol

from hack.cluster import volumes
from hack.cluster.errors import NotPossibleHere
from hack.cluster.images import Image


class Engine(Protocol):
    """A local two-node cluster. Node names are `nodes`; faults are described in `nodes.py`."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the two nodes that run pods."""

    def up(self, grace: float, network_policies: bool = False) -> None: ...
    def down(self) -> None: ...
    def status(self) -> None: ...
    def power_off(self, node: str) -> None: ...
    def power_on(self, node: str) -> None: ...
    def freeze(self, node: str) -> None: ...
    def thaw(self, node: str) -> None: ...
    def link(self, node: str, up: bool) -> None: ...
    def start(self, machine: str, component: str) -> None: ...
    def stop(self, machine: str, component: str) -> None: ...
    def shell(self, machine: str, command: list[str]) -> None: ...
    def ctr_args(self, node: str) -> list[str]: ...
    def load(self, images: list[Image]) -> None: ...
    def volumes_folder(self) -> Path: ...


def choose() -> Engine:
    """kind where a Docker engine and kind are there, else namespaces of this computer."""
    from hack.cluster import kind, nodes

    if kind.possible():
        return kind.KindCluster()
    if sys.platform == "linux" and os.geteuid() == 0:
        return nodes.NodesCluster()
    raise NotPossibleHere(
        "no cluster can run here: it needs root on Linux, or Docker that answers and kind"
    )


def possible() -> bool:
    """Whether any engine can run a cluster on this machine."""
    try:
        choose()
    except NotPossibleHere:
        return False
    return True


def load(images: list[Image]) -> None:
    """Make images available to the cluster: those that changed are imported, others left alone."""
    choose().load(images)


def make_volume(name: str, namespace: str, claim: str, path: Path | None = None) -> Path:
    """Offer a directory to pods as a claim, see `volumes.make_volume`."""
    return volumes.make_volume(name, namespace, claim, choose().volumes_folder(), path)
