"""The same cluster on kind, for people who have a Docker engine: the same commands, other means.

A node is a container: its power is `docker stop`, its link is its Docker network, a hang is
`docker pause`. kind brings containerd, CNI and CoreDNS; shared volumes are a folder of the
checkout that `kind-config.yaml` mounts into every node.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from hack.cluster import volumes
from hack.cluster.errors import ClusterError
from hack.cluster.images import Image, import_image, listed
from hack.cluster.kubectl import answers, kubectl, ready_nodes
from hack.cluster.paths import CHECKOUT, KUBECONFIG, VOLUMES
from hack.cluster.process import Steps, run, succeeds, wait_for

NAME = "finetune-operator"
CONFIG = CHECKOUT / "kind-config.yaml"
SEEN_BY_NODES = Path("/var/local/finetune-volumes")  # the containerPath in kind-config.yaml
_CONTROL_PLANE = f"{NAME}-control-plane"


class KindCluster:
    """The engine behind the command line where Docker answers and kind is installed."""

    nodes = (f"{NAME}-worker", f"{NAME}-worker2")

    def up(self, grace: float, network_policies: bool = False) -> None:
        """Create the cluster, or say that it is up; the grace period is in `kind-config.yaml`.

        The network plugin of kind enforces NetworkPolicies by itself.
        """
        del grace, network_policies
        if len(ready_nodes()) == len(self.nodes) + 1:
            print(f"the cluster is up: export KUBECONFIG={shlex.quote(str(KUBECONFIG))}")
            return
        if NAME in run(["kind", "get", "clusters"]).split():
            self.down()
        steps = Steps()
        VOLUMES.mkdir(parents=True, exist_ok=True)
        # Relative paths in the configuration count from the working directory.
        files = ["--config", str(CONFIG), "--kubeconfig", str(KUBECONFIG)]
        argv = ["kind", "create", "cluster", "--name", NAME, *files, "--wait", "180s"]
        run(argv, cwd=CHECKOUT)
        steps.done("kind cluster")
        wait_for(
            lambda: len(ready_nodes()) == len(self.nodes) + 1, 180, "the nodes to be Ready", 0.5
        )
        _only_default_class()
        volumes.offer(SEEN_BY_NODES)
        steps.done("shared volumes")
        print(f"the cluster is up: export KUBECONFIG={shlex.quote(str(KUBECONFIG))}")

    def down(self) -> None:
        """Delete the cluster and its volumes; safe if it does not exist."""
        steps = Steps()
        run(["kind", "delete", "cluster", "--name", NAME, "--kubeconfig", KUBECONFIG])
        KUBECONFIG.unlink(missing_ok=True)
        if VOLUMES.exists():  # pods may have written as users that this one cannot remove
            image = ["docker", "run", "--rm", "-v", f"{VOLUMES}:/v", "--entrypoint", "sh"]
            found = run(["docker", "images", "-q", "kindest/node"]).split()
            if found:
                run([*image, found[0], "-c", "rm -rf /v/* /v/.[!.]*"])
        steps.done("the cluster is down")

    def status(self) -> None:
        """Print the containers and which nodes are Ready."""
        label = f"label=io.x-k8s.kind.cluster={NAME}"
        print(run(["docker", "ps", "-a", "--filter", label]), end="")
        print("Ready:", " ".join(ready_nodes()) or "none")

    def power_off(self, node: str) -> None:
        """Stop the node's container at once."""
        run(["docker", "stop", "--time", "0", self._node(node)])

    def power_on(self, node: str) -> None:
        """Start the node's container again."""
        run(["docker", "start", self._node(node)])

    def freeze(self, node: str) -> None:
        """Pause everything in the node's container."""
        run(["docker", "pause", self._node(node)])

    def thaw(self, node: str) -> None:
        """Resume a paused node."""
        run(["docker", "unpause", self._node(node)])

    def link(self, node: str, up: bool) -> None:
        """Take the node's container off kind's network, or put it back."""
        run(["docker", "network", "connect" if up else "disconnect", "kind", self._node(node)])

    def start(self, machine: str, component: str) -> None:
        """Start a systemd unit of a node (kubelet, containerd)."""
        run(["docker", "exec", self._machine(machine), "systemctl", "start", component])

    def stop(self, machine: str, component: str) -> None:
        """Kill a systemd unit of a node, so that systemd does not restart it."""
        argv = ["docker", "exec", self._machine(machine), "systemctl"]
        run([*argv, "kill", "--signal=KILL", component])
        run([*argv, "stop", component])

    def shell(self, machine: str, command: list[str]) -> None:
        """Replace this process by a command in a node's container."""
        argv = ["docker", "exec", "-i", self._machine(machine), *(command or ["bash"])]
        os.execvp(argv[0], argv)

    def ctr_args(self, node: str) -> list[str]:
        """The command prefix that runs containerd's `ctr` on a node, in Kubernetes' namespace."""
        return ["docker", "exec", "-i", self._node(node), "ctr", "-n", "k8s.io"]

    def load(self, images: list[Image]) -> None:
        """Import images into the nodes, which must run."""
        if not answers("get", "--raw", "/readyz", wanted="ok"):
            raise ClusterError("no cluster is up: `python3 -m hack.cluster up`, then load images")
        for node in self.nodes:
            ctr = self.ctr_args(node)
            present = listed(run([*ctr, "images", "ls"]))
            content = run([*ctr, "content", "ls", "-q"]).split()
            for image in images:
                if present.get(image.reference) != image.digest:
                    import_image(ctr, image, frozenset(content))

    def volumes_folder(self) -> Path:
        """Where the nodes see the folder of the shared volumes."""
        return SEEN_BY_NODES

    def _node(self, name: str) -> str:
        """The container of a node, which may be called node1 and node2 as in the other engine."""
        known = dict(zip(("node1", "node2"), self.nodes, strict=True)) | {n: n for n in self.nodes}
        if name not in known:
            raise ClusterError(f"there is no node {name!r}: it is one of {', '.join(known)}")
        return known[name]

    def _machine(self, name: str) -> str:
        return _CONTROL_PLANE if name in ("cp", _CONTROL_PLANE) else self._node(name)


def possible() -> bool:
    """Whether a Docker engine answers and kind is installed."""
    return succeeds(["docker", "info"]) and succeeds(["kind", "version"])


def _only_default_class() -> None:
    # kind's own class cannot make volumes that two nodes share.
    kubectl("delete", "storageclass", "standard", "--ignore-not-found")
