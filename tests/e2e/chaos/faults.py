"""The faults, each undone when its context ends, however that comes about.

What can be done through the API or the local cluster's commands works with every engine. Signals to
a control plane's daemon, to the operator's process and a small volume need processes and mounts of
this computer, which only the cluster of namespaces has; `needs_nodes` skips the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from hack.cluster.engine import Engine, make_volume
from hack.cluster.kubectl import answers, ready_nodes
from hack.cluster.layout import CONTROL_PLANE, RUN
from hack.cluster.machine import Machine
from hack.cluster.nodes import NodesCluster
from hack.cluster.paths import STATE, VOLUMES
from hack.cluster.process import read_text, run, succeeds, wait_for
from hack.demo.kubectl import Kubectl, KubectlError
from hack.demo.platform import ASSETS, RELEASE

CLAIM = "finetune-workspace"
_SIGNAL_RANKS = r"""
import contextlib, os, sys, time
from pathlib import Path
for path in Path('/proc').iterdir():
    with contextlib.suppress(OSError):  # other processes come and go
        words = (path / 'cmdline').read_bytes().split(b'\0')
        if b'finetune_trainer.training.worker' in words:
            os.kill(int(path.name), int(sys.argv[1]))
            print(time.time(), flush=True)
"""


def needs_nodes(engine: Engine) -> None:
    """Skip a case that needs the processes or mounts of the nodes on this computer."""
    if not isinstance(engine, NodesCluster):
        pytest.skip("it needs a cluster whose nodes are namespaces of this computer")


def signal_ranks(kubectl: Kubectl, pod: str, signum: int) -> float:
    """Signal the training processes of a pod, from inside; returns when."""
    command = ("python", "-c", _SIGNAL_RANKS, str(int(signum)))
    reported = kubectl.run("exec", pod, "--", *command)
    if not reported.strip():
        raise AssertionError(f"no training process runs in pod {pod}")
    return float(reported.split()[0])


@contextlib.contextmanager
def stopped_ranks(kubectl: Kubectl, pod: str) -> Iterator[float]:
    """The training processes of a pod are stopped; those that remain at the end continue."""
    at = signal_ranks(kubectl, pod, signal.SIGSTOP)
    try:
        yield at
    finally:
        with contextlib.suppress(KubectlError, AssertionError):  # most often the pod is gone
            signal_ranks(kubectl, pod, signal.SIGCONT)


def delete_pod(kubectl: Kubectl, pod: str) -> float:
    """Delete a pod as a person does; returns when."""
    at = time.time()
    kubectl.run("delete", "pod", pod, "--wait=false")
    return at


def patched(kubectl: Kubectl, kind: str, name: str, change: dict[str, Any]) -> float:
    """Merge a change into an object; returns when."""
    at = time.time()
    kubectl.run("patch", kind, name, "--type=merge", f"--patch={json.dumps(change)}")
    return at


@contextlib.contextmanager
def profile_with(kubectl: Kubectl, name: str, **changes: Any) -> Iterator[str]:
    """An AcceleratorProfile like that for CPUs, but for some fields."""
    usual = kubectl.json("get", "acceleratorprofile", "cpu")
    kubectl.apply(
        {
            "apiVersion": usual["apiVersion"],
            "kind": usual["kind"],
            "metadata": {"name": name},
            "spec": {**usual["spec"], **changes},
        }
    )
    try:
        yield name
    finally:
        kubectl.run("delete", "acceleratorprofile", name)


@contextlib.contextmanager
def lasting(begin: Callable[[], None], end: Callable[[], None]) -> Iterator[float]:
    """A state that begins now and ends with the context; yields when it began."""
    at = time.time()
    begin()
    try:
        yield at
    finally:
        end()


def powered_off(engine: Engine, node: str) -> AbstractContextManager[float]:
    """A node without power; it boots when the context ends."""
    return lasting(lambda: engine.power_off(node), lambda: engine.power_on(node))


def cut_off(engine: Engine, node: str) -> AbstractContextManager[float]:
    """A node without a network; its pods run on."""
    return lasting(lambda: engine.link(node, False), lambda: engine.link(node, True))


def frozen(engine: Engine, node: str) -> AbstractContextManager[float]:
    """A node on which nothing runs, with its network connected."""
    return lasting(lambda: engine.freeze(node), lambda: engine.thaw(node))


@contextlib.contextmanager
def drained(kubectl: Kubectl, node: str, seconds: float) -> Iterator[float]:
    """A node that is drained as an administrator does it; uncordoned when the context ends."""
    at = time.time()
    flags = ("--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={seconds:.0f}s")
    try:
        kubectl.run("drain", node, *flags, timeout=seconds + 30)
        yield at
    finally:
        kubectl.run("uncordon", node)


@contextlib.contextmanager
def cordoned(kubectl: Kubectl, node: str) -> Iterator[None]:
    """A node that takes no new pods."""
    try:
        kubectl.run("cordon", node)
        yield
    finally:
        kubectl.run("uncordon", node)


@contextlib.contextmanager
def operator_option(system: Kubectl, flag: str, value: object) -> Iterator[None]:
    """The operator with another value of a flag of its Deployment."""

    def set_to(text: str) -> str:
        """Roll out the value; returns the one before."""
        deployment = system.json("get", "deployment", RELEASE)
        args = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
        (index,) = (at for at, arg in enumerate(args) if arg.startswith(f"{flag}="))
        path = f"/spec/template/spec/containers/0/args/{index}"
        patch = [{"op": "replace", "path": path, "value": f"{flag}={text}"}]
        system.run("patch", "deployment", RELEASE, "--type=json", "-p", json.dumps(patch))
        system.run("rollout", "status", f"deployment/{RELEASE}", "--timeout=120s", timeout=150)
        return str(args[index]).partition("=")[2]

    before = set_to(str(value))
    try:
        yield
    finally:
        set_to(before)


@contextlib.contextmanager
def reclaimed(kubectl: Kubectl, node: str) -> Iterator[float]:
    """A node whose pods are evicted, as when a cloud reclaims a spot instance."""
    taint, at = "reclaimed=spot:NoExecute", time.time()
    try:
        kubectl.run("taint", "node", node, taint)
        yield at
    finally:
        kubectl.run("taint", "node", node, f"{taint}-")


@contextlib.contextmanager
def api_server_killed(engine: Engine) -> Iterator[float]:
    """No API server; when the context ends it is started, and has answered."""
    at = time.time()
    engine.stop(CONTROL_PLANE, "kube-apiserver")
    try:
        yield at
    finally:
        engine.start(CONTROL_PLANE, "kube-apiserver")
        wait_for(lambda: answers("get", "--raw", "/readyz", wanted="ok"), 60, "the API server")


@contextlib.contextmanager
def paused(component: str) -> Iterator[float]:
    """A daemon of the control plane that is stopped, and continues when the context ends."""
    (pid,) = (p.outer for p in Machine(CONTROL_PLANE).processes() if p.program == component)
    at = time.time()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield at
    finally:
        os.kill(pid, signal.SIGCONT)


def kill_operator(system: Kubectl, pod: str) -> bool:
    """End an operator's process without a word, and its pod with it; whether there was one yet.

    The pod goes too, because the kubelet would let a container that ends again and again wait.
    """
    processes = _processes_of(pod, "finetune_operator")
    for pid in processes:
        os.kill(pid, signal.SIGKILL)
    system.run("delete", "pod", pod, "--grace-period=0", "--force", "--ignore-not-found")
    return bool(processes)


def _processes_of(pod: str, module: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and f"\0{module}" in read_text(entry / "cmdline"):
            names = read_text(entry / "environ").split("\0")
            if f"HOSTNAME={pod}" in names:
                found.append(int(entry.name))
    return found


def logs_on(node: str, pod: str) -> str:
    """What a pod's containers wrote, from the node's disk: also while the node is cut off."""
    folder = RUN / node / "var/log/pods"
    return "".join(read_text(path) for path in sorted(folder.glob(f"*_{pod}_*/*/*.log")))


def wait_until_fenced(engine: Engine, node: str, pod: str, seconds: float = 120) -> None:
    """Wait until a rank on an unreachable node has written that it is fenced."""
    needs_nodes(engine)
    wait_for(lambda: "Fenced" in logs_on(node, pod), seconds, f"{pod} to find itself fenced", 0.5)


@contextlib.contextmanager
def small_workspace(kubectl: Kubectl, namespace: str, mib: int) -> Iterator[Path]:
    """A namespace whose workspace is a file system of its own; yields where it is here.

    One block device, mounted here and on every node, is one file system for all of them.
    """
    image, folder = STATE / f"{namespace}.ext4", VOLUMES / namespace
    folder.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(mib * 2**20)
    run(["mkfs.ext4", "-q", "-m", "0", image])
    device = run(["losetup", "--find", "--show", image]).strip()
    machines = [Machine(node) for node in NodesCluster.nodes]
    try:
        for prefix in ([], *(machine.inside() for machine in machines)):
            run([*prefix, "mount", device, folder])
        (folder / "lost+found").rmdir()
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        metadata = {"name": namespace, "labels": labels}
        kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        make_volume(namespace, namespace, CLAIM)
        yield folder
    finally:
        kubectl.run("delete", "namespace", namespace, "--ignore-not-found", timeout=150)
        kubectl.run("delete", "pv", namespace, f"{ASSETS}-{namespace}", "--ignore-not-found")
        for prefix in (*(machine.inside() for machine in machines), []):
            succeeds([*prefix, "umount", "-l", str(folder)])
        succeeds(["losetup", "-d", device])
        image.unlink()


@contextlib.contextmanager
def memory_limit(kubectl: Kubectl, limit: str) -> Iterator[None]:
    """Containers that are created meanwhile may not use more memory, as an administrator can say.

    Pods on a pool without accelerators have no limit of their own.
    """
    limits = [{"type": "Container", "default": {"memory": limit}}]
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "LimitRange",
            "metadata": {"name": "chaos"},
            "spec": {"limits": limits},
        }
    )
    try:
        yield
    finally:
        kubectl.run("delete", "limitrange", "chaos")


def offer_assets(folder: Path, namespace: str) -> None:
    """Offer the folder of model and data to another namespace too."""
    make_volume(f"{ASSETS}-{namespace}", namespace, ASSETS, folder)


def fill(folder: Path) -> Path:
    """Write a file until no space is left; returns it."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path


def all_ready(engine: Engine) -> bool:
    """Whether both nodes are Ready."""
    return set(engine.nodes) <= set(ready_nodes())
