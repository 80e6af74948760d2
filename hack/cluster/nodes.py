"""The cluster whose nodes are namespaces of this computer: up, down, and faults. Needs root.

Real binaries with the flags of a stock installation; no Docker, no systemd, nothing outside the
namespaces but one network link, the nodes' control groups and a few empty folders, all of which
`down` takes away again. Two checkouts cannot use it at the same time: the link says whose it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from hack.cluster import (
    binaries,
    cgroups,
    components,
    golden,
    layout,
    network,
    objects,
    policies,
    volumes,
)
from hack.cluster.errors import ClusterError
from hack.cluster.images import Image, blobs, import_image, listed
from hack.cluster.kubectl import answers, apply, ready_nodes
from hack.cluster.layout import CONTROL_PLANE, LOGS, NODES, PKI, RUN
from hack.cluster.machine import MOUNT_POINTS, Machine, names
from hack.cluster.paths import CHECKOUT, KUBECONFIG, VOLUMES, cache_dir, locked, put
from hack.cluster.prerequisites import CLUSTER, POLICIES, install
from hack.cluster.process import Steps, read_text, run, succeeds, wait_for
from hack.cluster.tinyimage import pause_image

# The kubelet sets these for the whole computer; `down` restores them.
SYSCTLS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
_MODULES = ("overlay", "br_netfilter", "veth")


class NodesCluster:
    """The engine behind the command line where this process is root."""

    nodes = tuple(NODES)

    def up(self, grace: float, network_policies: bool = False) -> None:
        """Bring the cluster up, or say that it is; a node silent for `grace` s is NotReady.

        With `network_policies` it enforces them from now on, also one that was up.
        """
        with _exclusive():
            healthy = self._healthy()
            if not healthy and _leftovers():
                self._down()
            try:
                if not healthy:
                    self._up(grace)
                if network_policies and not policies.WANTED.exists():
                    self._enforce_policies()
            except ClusterError as error:
                raise ClusterError(f"{error} (logs: {LOGS}; `down` cleans up)") from None
        print(f"the cluster is up: export KUBECONFIG={shlex.quote(str(KUBECONFIG))}")

    def _up(self, grace: float) -> None:
        steps = Steps()
        install(CLUSTER)
        binaries.ensure()
        steps.done("programs")
        root = golden.ensure([pause_image()])
        steps.done("image cache")
        _prepare_host(grace)
        components.issue_certificates()
        steps.done("certificates")
        self._start_control_plane()
        steps.done("etcd, kube-apiserver, controllers, scheduler, CoreDNS")
        for name in NODES:
            golden.clone(root, layout.containerd_root(name), RUN)
            self.power_on(name)
            steps.done(f"{name}: containerd, kubelet, kube-proxy")
        volumes.offer(VOLUMES)
        steps.done("shared volumes")
        wait_for(lambda: len(ready_nodes()) == len(NODES), 120, "the nodes to be Ready", 0.2)
        account = ("get", "serviceaccount", "default", "-n", "default", "-o", "name")
        wait_for(lambda: answers(*account), 60, "the default service account", 0.2)
        put(RUN / "complete", "")
        steps.done("both nodes Ready")

    def _enforce_policies(self) -> None:
        steps = Steps()
        install(POLICIES)
        policies.program()
        policies.issue_certificate()
        apply(policies.access())
        for name in NODES:
            self.start(name, policies.COMPONENT)
        put(policies.WANTED, "")
        steps.done("kube-router on both nodes")

    def down(self) -> None:
        """Take everything away, also after a crash; the image cache and the logs stay."""
        if not RUN.exists() and network.owner() not in (None, str(CHECKOUT)):
            return  # the cluster that is up belongs to another checkout
        with _exclusive():
            self._down()

    def _down(self) -> None:
        steps = Steps()
        for name in reversed(names()):
            if name != CONTROL_PLANE and cgroups.daemons_file(name).exists():
                cgroups.freeze(name, False)  # a frozen process does not die
            Machine(name).power_off()
        network.disconnect_host()
        left = cgroups.remove()
        _restore_host()
        for path in (RUN, VOLUMES):
            _remove_tree(path)
        KUBECONFIG.unlink(missing_ok=True)
        if left:
            raise ClusterError(f"control groups would not go: {', '.join(map(str, left))}")
        steps.done("the cluster is down")

    def status(self) -> None:
        """Print the machines, their daemons with resident memory, and which nodes are Ready."""
        ready = ready_nodes() if KUBECONFIG.exists() else []
        for name in names():
            machine = Machine(name)
            state = "off" if machine.pid is None else f"init {machine.pid}"
            print(f"{name:<8} {state}{'  Ready' if name in ready else ''}")
            for process in machine.processes():
                if process.program not in ("bash", "sleep"):
                    print(f"  {process.outer:>8}  {process.program:<24} {process.resident:>5} MiB")

    def power_off(self, node: str) -> None:
        """The node loses its power: every process on it ends at once."""
        _known_node(node)
        Machine(node).power_off()
        cgroups.remove(node)

    def power_on(self, node: str) -> None:
        """The node boots: network, containerd, kubelet and kube-proxy; its disk is as it was."""
        _known_node(node)
        machine = Machine(node)
        if machine.pid is not None:
            raise ClusterError(f"{node} is on already")
        machine.boot()
        components.write_node_files(node)
        cgroups.create(node)
        network.connect_node(node)
        self._start_containerd(machine)
        self.start(node, "kubelet")
        self.start(node, "kube-proxy")
        if policies.WANTED.exists():
            self.start(node, policies.COMPONENT)

    def freeze(self, node: str) -> None:
        """The node hangs: nothing on it runs, its network stays connected."""
        _known_node(node)
        cgroups.freeze(node, True)

    def thaw(self, node: str) -> None:
        """Let a frozen node continue where it stopped."""
        _known_node(node)
        cgroups.freeze(node, False)

    def link(self, node: str, up: bool) -> None:
        """Cut the node's network link, or restore it; its pods run on."""
        network.set_link(node, up)

    def start(self, machine: str, component: str) -> None:
        """Start a component of a machine that runs."""
        try:
            argv = components.command(machine, component)
        except KeyError:
            raise ClusterError(f"{machine} has no component {component!r}") from None
        Machine(machine).start(component, argv)

    def stop(self, machine: str, component: str) -> None:
        """Kill a component of a machine; it stays dead until `start`."""
        Machine(machine).stop(component)

    def shell(self, machine: str, command: list[str]) -> None:
        """Replace this process by a command in the namespaces of a machine."""
        argv = Machine(machine).inside(*(command or ["bash"]))
        os.execvp(argv[0], argv)

    def ctr_args(self, node: str) -> list[str]:
        """The command prefix that runs containerd's `ctr` on a node, in Kubernetes' namespace."""
        return Machine(node).inside("ctr", "-n", "k8s.io")

    def load(self, images: list[Image]) -> None:
        """Put images into the cache from which nodes start, and into the nodes that run."""
        install(CLUSTER)
        with _exclusive():
            golden.ensure([pause_image(), *images])
            for node in NODES:
                if Machine(node).pid is not None:
                    _import_missing(self.ctr_args(node), layout.containerd_root(node), images)

    def volumes_folder(self) -> Path:
        """Where the nodes see the folder of the shared volumes."""
        return VOLUMES

    def _healthy(self) -> bool:
        running = all(Machine(name).pid is not None for name in names())
        complete = running and (RUN / "complete").exists()
        return complete and len(ready_nodes()) == len(NODES)

    def _start_control_plane(self) -> None:
        Machine(CONTROL_PLANE).boot()
        network.connect_control_plane()
        self.start(CONTROL_PLANE, "etcd")
        self.start(CONTROL_PLANE, "kube-apiserver")
        put(KUBECONFIG, (PKI / "admin.kubeconfig").read_text(), 0o600)
        wait_for(lambda: answers("get", "--raw", "/readyz", wanted="ok"), 120, "the API server")
        self.start(CONTROL_PLANE, "kube-controller-manager")
        self.start(CONTROL_PLANE, "kube-scheduler")
        apply(objects.dns())
        components.write_corefile()
        self.start(CONTROL_PLANE, "coredns")

    def _start_containerd(self, machine: Machine) -> None:
        log = machine.log("containerd")
        before = log.stat().st_size if log.exists() else 0
        self.start(machine.name, "containerd")

        def serving() -> bool:
            # The socket answers earlier, and a kubelet that receives "not initialized yet" exits.
            return log.exists() and b"Start streaming server" in log.read_bytes()[before:]

        wait_for(serving, 60, f"containerd on {machine.name}, see {log}")


@contextlib.contextmanager
def _exclusive() -> Iterator[None]:
    with locked(cache_dir() / "cluster.lock"):
        owner = network.owner()
        if owner and owner != str(CHECKOUT):
            raise ClusterError(
                f"the cluster of {owner} is up on this computer: "
                f"stop it with `cd {owner} && python3 -m hack.cluster down`"
            )
        yield


def _leftovers() -> bool:
    return RUN.exists() or network.owner() is not None


def _known_node(name: str) -> None:
    if name not in NODES:
        raise ClusterError(f"there is no node {name!r}: it is one of {', '.join(NODES)}")
    if not (RUN / name).exists() and not PKI.exists():
        raise ClusterError("no cluster is up: `python3 -m hack.cluster up`")


def _import_missing(ctr: list[str], root: Path, images: list[Image]) -> None:
    present = listed(run([*ctr, "images", "ls"]))
    for image in images:
        if present.get(image.reference) != image.digest:
            import_image(ctr, image, blobs(root))


def _prepare_host(grace: float) -> None:
    """Note what will be changed on this computer, then make the mount points."""
    shutil.rmtree(LOGS, ignore_errors=True)
    for module in _MODULES:
        succeeds(["modprobe", module])  # built in on many kernels; what is missing shows later
    before = {name: read_text(f"/proc/sys/{name}").strip() for name in SYSCTLS}
    put(RUN / "sysctls.json", json.dumps(before))
    missing = [f"/{p}" for p in MOUNT_POINTS if not Path("/", p).is_dir()]
    put(RUN / "made-folders.json", json.dumps(missing))
    for path in missing:
        Path(path).mkdir(parents=True)
    put(RUN / "settings.json", json.dumps({"grace": grace}))


def _restore_host() -> None:
    for name, value in json.loads(read_text(RUN / "sysctls.json") or "{}").items():
        path = Path("/proc/sys", name)
        if value and read_text(path).strip() != value:
            path.write_text(value)
    for path in json.loads(read_text(RUN / "made-folders.json") or "[]"):
        with contextlib.suppress(OSError):  # another process uses it by now
            Path(path).rmdir()


def _remove_tree(path: Path) -> None:
    """Remove a folder; the kernel drops the mounts of a dead machine a moment after it."""

    def gone() -> bool:
        shutil.rmtree(path, ignore_errors=True)
        return not path.exists()

    wait_for(gone, 60, f"the removal of {path}: check for mounts below it")
