"""Links and routes of the machines: a bridge in the control plane's network, none on the host.

Pods talk to pods of the other node by static routes and see each other's real addresses. Nothing
leads out: the control plane does not forward, so the cluster is closed.
"""

from __future__ import annotations

from pathlib import Path

from hack.cluster.errors import ClusterError
from hack.cluster.layout import CONTROL_PLANE, CONTROL_PLANE_IP, HOST_IP, HOST_LINK, NODES
from hack.cluster.machine import Machine
from hack.cluster.paths import CHECKOUT
from hack.cluster.process import run, succeeds, wait_for

_LINK = Path("/sys/class/net") / HOST_LINK


def owner() -> str | None:
    """The checkout whose cluster is up here, or None: the host's link carries its name."""
    try:
        return (_LINK / "ifalias").read_text().strip() or "an unknown program"
    except OSError:
        return None


def connect_control_plane() -> None:
    """Make the bridge and the host's link to it."""
    machine = Machine(CONTROL_PLANE)
    for words in (
        "link add br0 type bridge",
        f"addr add {CONTROL_PLANE_IP}/24 dev br0",
        "link set br0 up",
    ):
        run(machine.network("ip", *words.split()))
    peer = f"type veth peer name p-host netns {machine.pid}"
    run(["ip", "link", "add", HOST_LINK, *peer.split()])
    run(["ip", "link", "set", HOST_LINK, "alias", str(CHECKOUT)])
    run(["ip", "addr", "add", f"{HOST_IP}/24", "dev", HOST_LINK])
    run(["ip", "link", "set", HOST_LINK, "up"])
    run(machine.network("ip", "link", "set", "p-host", "master", "br0", "up"))


def connect_node(name: str) -> None:
    """Plug a node that has just booted into the bridge and give it its routes."""
    control_plane, machine, node = Machine(CONTROL_PLANE), Machine(name), NODES[name]
    port = f"p-{name}"
    for words in (
        f"link add {port} type veth peer name eth0 netns {machine.pid}",
        f"link set {port} master br0 up",
        f"route replace {node.pods} via {node.ip}",
    ):
        run(control_plane.network("ip", *words.split()))
    others = [n for other, n in NODES.items() if other != name]
    for words in (
        f"addr add {node.ip}/24 dev eth0",
        "link set eth0 up",
        # Without a default route the node itself cannot reach Service addresses.
        f"route add default via {CONTROL_PLANE_IP}",
        *(f"route add {n.pods} via {n.ip}" for n in others),
    ):
        run(machine.network("ip", *words.split()))
    for name in ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables"):
        if not Path("/proc/sys", name).exists():
            raise ClusterError(
                f"/proc/sys/{name} is missing: `modprobe br_netfilter` and try again"
            )
        run(machine.inside("bash", "-c", 'echo 1 >"$1"', "set", f"/proc/sys/{name}"))


def set_link(name: str, up: bool) -> None:
    """Cut a node off the network, or connect it again; everything on it keeps running."""
    if name not in NODES:
        raise ClusterError(f"there is no node {name!r}: it is one of {', '.join(NODES)}")
    state = "up" if up else "down"
    run(Machine(CONTROL_PLANE).network("ip", "link", "set", f"p-{name}", state))


def disconnect_host() -> None:
    """Wait until the host's link is gone: the kernel drops it after the control plane's network."""

    def gone() -> bool:
        return not _LINK.exists() or succeeds(["ip", "link", "del", HOST_LINK])

    wait_for(gone, 10, f"the removal of the link {HOST_LINK}")
