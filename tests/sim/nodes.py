"""Scheduler, kubelets, and what happens to pods whose node disappears.

A partitioned node keeps running and reports nothing; a node without power loses all its processes.
They look the same from outside: not ready, then tainted, then their pods are marked for deletion,
and stay so until the node is back. Times were measured on a real cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetune_operator.decision import ATTEMPT_LABEL, JOB_UID_LABEL, STAGE_LABEL, Manifest
from finetune_operator.engine.kube_client import NotFound
from finetune_operator.jobs.observe import INDEX_LABEL

from tests.sim.clock import START, Clock
from tests.sim.server import ApiServer, Happening
from tests.sim.serving import is_serving
from tests.sim.trainer import Process, Trainer

NOT_READY = 8.0
TOLERATION = 5.0
READY_AGAIN = 2.0
LOST_TRACK = 255
"""Exit code of a container whose end the runtime did not see."""
NODES = ("node1", "node2", "node3", "node4")
"""Enough for two gangs of two: a partitioned one, and its successor."""


@dataclass
class Node:
    """A machine that runs pods."""

    name: str
    address: int
    powered: bool = True
    linked: bool = True
    ready: bool = True
    cordoned: bool = False
    evicted: bool = False
    """Whether its pods were marked for deletion since it was lost."""
    losses: int = 0

    @property
    def reachable(self) -> bool:
        """Whether its kubelet can talk to the API server."""
        return self.powered and self.linked


class Nodes:
    """The machines and their pods."""

    def __init__(
        self, server: ApiServer, clock: Clock, trainer: Trainer, met: Callable[[str], None]
    ) -> None:
        self._server = server
        self._clock = clock
        self._trainer = trainer
        self._met = met
        self.has_sidecars = False
        """Whether pods have a container that ends only with the pod."""
        self.nodes = {name: Node(name, number) for number, name in enumerate(NODES)}
        trainer.exited = self._exited
        server.listeners.append(self._seen)

    # What users and faults do to nodes

    def cut(self, name: str, wholly: bool = False) -> None:
        """The node cannot reach the API server; wholly: nor the other nodes."""
        node = self.nodes[name]
        if node.reachable:
            node.linked = False
            self._lost(node)
            for process in self._running(name) if wholly else ():
                if process.stage == "train":
                    self._trainer.gangs[process.batch].sever()

    def power_off(self, name: str) -> None:
        """Every process of the node is gone at once, unreported."""
        node = self.nodes[name]
        if node.powered:
            node.powered = False
            for process in list(self._running(name)):
                self._trainer.exit(process, LOST_TRACK)
            self._lost(node)

    def bring_back(self, name: str) -> None:
        """Power and network are back."""
        node = self.nodes[name]
        if not node.reachable:
            node.powered = node.linked = True
            node.losses += 1
            self._clock.after(READY_AGAIN, self._returned, node, node.losses)

    def drain(self, name: str, seconds: float) -> int:
        """kubectl drain, and uncordon some time later; how many pods were evicted."""
        node = self.nodes[name]
        node.cordoned = True
        self._clock.after(seconds, setattr, node, "cordoned", False)
        pods = [pod for pod in self.pods_on(name) if _active(pod)]
        for pod in pods:
            self.evict(pod, "EvictionByEvictionAPI")
        return len(pods)

    def fill(self, free: str, seconds: float) -> None:
        """Other work takes every node but one for some time."""
        for node in self.nodes.values():
            if node.name != free:
                node.cordoned = True
                self._clock.after(seconds, setattr, node, "cordoned", False)

    def evict(self, pod: Manifest, reason: str) -> None:
        """Mark a pod as disrupted and delete it with its grace."""
        meta = pod["metadata"]
        mark = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": reason,
            "message": "disrupted by the simulation",
            "lastTransitionTime": self._clock.text(),
        }
        others = [c for c in pod["status"].get("conditions") or () if c["type"] != mark["type"]]
        self._status(pod, {"conditions": [*others, mark]})
        self._server.delete("Pod", meta["namespace"], meta["name"], uid=meta["uid"])

    def pods_on(self, name: str) -> list[Manifest]:
        """Pods of the node in the API server."""
        return [p for p in self._server.list("Pod") if p["spec"].get("nodeName") == name]

    def answer(self, url: str) -> Any:
        """The progress that the pod at an address reports."""
        address = url.split("//")[1].split(":")[0]
        for process in self._trainer.processes.values():
            if process.alive and _address(self.nodes[process.node], process.pod) == address:
                node = self.nodes[process.node]
                return self._trainer.progress(process) if node.reachable else None
        return None

    # The node controller

    def _lost(self, node: Node) -> None:
        node.losses += 1
        node.evicted = False
        self._clock.after(NOT_READY, self._not_ready, node, node.losses)

    def _not_ready(self, node: Node, loss: int) -> None:
        if node.losses == loss:
            node.ready = False
            self._clock.after(TOLERATION, self._evict_all, node, loss)

    def _evict_all(self, node: Node, loss: int) -> None:
        if node.losses != loss:
            return
        node.evicted = True
        for process in self._running(node.name):
            process.given_up = True
        for pod in self.pods_on(node.name):  # those that are being deleted already, too
            if pod["status"].get("phase") in ("Pending", "Running"):
                self._met("node lost under a pod")
                self.evict(pod, "DeletionByTaintManager")

    def _returned(self, node: Node, loss: int) -> None:
        if node.losses != loss:
            return
        node.ready = True
        known = {pod["metadata"]["uid"]: pod for pod in self.pods_on(node.name)}
        for process in list(self._running(node.name)):
            if process.pod not in known:
                self._trainer.exit(process, 137)
        for uid, pod in known.items():
            started = self._trainer.processes.get(uid)
            if started is None:
                self._start(pod)
            elif not started.alive:
                self._report(started)
            elif "deletionTimestamp" in pod["metadata"]:
                self._terminate(pod)

    # The scheduler

    def _schedule(self, pod: Manifest) -> None:
        found = self._find(pod)
        if found is None or not _active(found) or found["spec"].get("nodeName"):
            return
        node = next((n for n in self._fitting(found)), None)
        if node is None:
            condition = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/4 nodes are available",
                "lastTransitionTime": self._clock.text(),
            }
            if not found["status"].get("conditions"):
                self._met("pod could not be scheduled")
                self._status(found, {"conditions": [condition]})
            self._clock.after(3.0, self._schedule, pod)
            return
        meta = found["metadata"]
        patch = {"spec": {"nodeName": node.name}}
        bound = self._server.patch("Pod", meta["namespace"], meta["name"], patch)
        if found["status"].get("conditions"):
            self._status(bound, {"conditions": None})

    def _fitting(self, pod: Manifest) -> Iterator[Node]:
        batch = _batch(pod)
        taken = {p["spec"].get("nodeName") for p in self._server.list("Pod") if _batch(p) == batch}
        for node in self.nodes.values():
            if node.ready and not node.cordoned and node.name not in taken | avoided(pod):
                yield node

    # The kubelets

    def _seen(self, what: Happening, pod: Manifest, old: Manifest | None) -> None:
        if pod["kind"] != "Pod" or is_serving(pod):
            return
        if what == "ADDED":
            self._clock.after(0.1, self._schedule, pod)
            return
        name = pod["spec"].get("nodeName")
        if not name or not self.nodes[name].reachable:
            return
        process = self._trainer.processes.get(pod["metadata"]["uid"])
        if what == "DELETED":
            if process is not None:
                self._trainer.exit(process, 137)
        elif old is not None and not old["spec"].get("nodeName"):
            self._clock.after(1.0, self._start, pod)
        elif _deadline(pod) != _deadline(old):
            self._terminate(pod)

    def _start(self, pod: Manifest) -> None:
        found = self._find(pod)
        if found is None or not self.nodes[found["spec"]["nodeName"]].reachable:
            return
        if found["metadata"]["uid"] in self._trainer.processes:
            return
        if not _active(found):
            self._terminate(found)
            return
        node = self.nodes[found["spec"]["nodeName"]]
        address = _address(node, found["metadata"]["uid"])
        self._status(found, {"phase": "Running", "podIP": address})
        self._trainer.start(_process(found))

    def _terminate(self, pod: Manifest) -> None:
        """SIGTERM now, SIGKILL at the end of the grace period."""
        process = self._trainer.processes.get(pod["metadata"]["uid"])
        if process is None:
            self._clock.after(0.05, self._forget, pod)
            return
        if not process.alive:
            self._report(process)  # a kubelet reports how a pod ended before it removes it
            return
        self._trainer.request_stop(process)
        deadline = (_deadline(pod) or 0.0) - self._clock.now
        self._clock.after(max(READY_AGAIN, deadline), self._kill, process)

    def _kill(self, process: Process) -> None:
        if process.alive:
            self._met("killed at the end of its grace")
            self._trainer.exit(process, 137)

    def _exited(self, process: Process) -> None:
        if self.nodes[process.node].reachable:
            self._clock.after(0.3, self._report, process)

    def _report(self, process: Process) -> None:
        pod = next((p for p in self.pods_on(process.node) if _uid(p) == process.pod), None)
        if pod is None or not self.nodes[process.node].reachable:
            return
        if pod["status"].get("phase") in ("Pending", "Running"):
            reason = "OOMKilled" if process.oom else "Error" if process.code else "Completed"
            reason = "Unknown" if process.code == LOST_TRACK else reason
            terminated = {
                "exitCode": process.code,
                "reason": reason,
                "message": process.message,
                "finishedAt": self._clock.text(),
            }
            phase = "Failed" if process.code else "Succeeded"
            is_deleted = "deletionTimestamp" in pod["metadata"]
            containers = [{"name": "trainer", "state": {"terminated": terminated}}]
            has_sidecar = self.has_sidecars and process.job  # a mesh leaves janitors alone
            if has_sidecar and not is_deleted and process.code != LOST_TRACK:
                self._met("sidecar ran on")
                phase = "Running"
                containers.insert(0, {"name": "proxy", "state": {"running": {}}})
            status = {
                "phase": phase,
                "containerStatuses": containers,
            }
            pod = self._status(pod, status)
        if "deletionTimestamp" in pod["metadata"]:
            self._clock.after(0.05, self._forget, pod)

    def _forget(self, pod: Manifest) -> None:
        """The kubelet removes a terminating pod."""
        found = self._find(pod)
        if found is not None and self.nodes[found["spec"]["nodeName"]].reachable:
            meta = found["metadata"]
            self._server.delete("Pod", meta["namespace"], meta["name"], meta["uid"], grace=0)

    def _running(self, name: str) -> Iterator[Process]:
        return (p for p in self._trainer.processes.values() if p.alive and p.node == name)

    def _find(self, pod: Manifest) -> Manifest | None:
        meta = pod["metadata"]
        found = self._server.find("Pod", meta["namespace"], meta["name"])
        return found if found is not None and _uid(found) == meta["uid"] else None

    def _status(self, pod: Manifest, status: Manifest) -> Manifest:
        meta = pod["metadata"]
        try:
            return self._server.patch(
                "Pod", meta["namespace"], meta["name"], {"status": status}, "status"
            )
        except NotFound:
            return pod


def avoided(pod: Manifest) -> set[str]:
    """Nodes that the pod's required affinity excludes by name."""
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    return {
        value
        for term in required.get("nodeSelectorTerms") or ()
        for rule in term.get("matchFields") or ()
        if (rule["key"], rule["operator"]) == ("metadata.name", "NotIn")
        for value in rule["values"]
    }


def _process(pod: Manifest) -> Process:
    meta = pod["metadata"]
    labels = meta["labels"]
    return Process(
        pod=meta["uid"],
        name=meta["name"],
        node=pod["spec"]["nodeName"],
        job=labels.get(JOB_UID_LABEL, ""),
        batch=_batch(pod),
        stage=labels.get(STAGE_LABEL, ""),
        attempt=int(labels.get(ATTEMPT_LABEL, "0")),
        index=int(labels.get(INDEX_LABEL, "0")),
        ranks=int(meta["annotations"]["sim/ranks"]),
    )


def _active(pod: Manifest) -> bool:
    return "deletionTimestamp" not in pod["metadata"] and pod["status"].get("phase") in (
        "Pending",
        "Running",
    )


def _uid(pod: Manifest) -> str:
    return str(pod["metadata"]["uid"])


def _batch(pod: Manifest) -> str:
    return str(pod["metadata"]["ownerReferences"][0]["uid"])


def _deadline(pod: Manifest | None) -> float | None:
    text = (pod or {}).get("metadata", {}).get("deletionTimestamp")
    if text is None:
        return None
    return (datetime.fromisoformat(text) - START).total_seconds()


def _address(node: Node, uid: str) -> str:
    return f"10.{node.address}.{int(uid[:8], 16) // 250}.{int(uid[:8], 16) % 250}"
