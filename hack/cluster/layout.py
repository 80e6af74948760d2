"""Names, addresses and folders of the cluster whose nodes are namespaces of this machine.

Three machines: `cp` (control plane) and two nodes, on one bridge inside the control plane's network
namespace. The host takes part through a single veth, the only object of it that other programs see.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from hack.cluster.paths import STATE

RUN = STATE / "run"
LOGS = STATE / "logs"
PKI = RUN / "pki"

CONTROL_PLANE = "cp"
CONTROL_PLANE_IP = "10.77.0.1"
API_URL = f"https://{CONTROL_PLANE_IP}:6443"
HOST_LINK = "lc-host"
HOST_IP = "10.77.0.254"
POD_NETWORK = "10.78.0.0/16"
SERVICE_NETWORK = "10.79.0.0/16"
API_SERVICE_IP = "10.79.0.1"
DNS_IP = "10.79.0.10"
DOMAIN = "cluster.local"


@dataclass(frozen=True)
class Node:
    """A node: its address on the bridge and the subnet that its pods get."""

    ip: str
    pods: str


NODES = {
    "node1": Node("10.77.0.11", "10.78.1.0/24"),
    "node2": Node("10.77.0.12", "10.78.2.0/24"),
}


def load_settings() -> dict[str, float]:
    """The options of `up`, kept because later `start` commands must repeat them."""
    try:
        settings: dict[str, float] = json.loads((RUN / "settings.json").read_text())
    except FileNotFoundError:
        return {"grace": 20.0}
    return settings


def containerd_root(node: str) -> Path:
    """Where a node's containerd keeps images; the node sees it as /var/lib/containerd."""
    return RUN / node / "var/lib/containerd"
