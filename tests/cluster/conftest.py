"""The local cluster for tests: used when it is up, else brought up and taken away at the end."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hack.cluster.engine import Engine, choose
from hack.cluster.errors import ClusterError, NotPossibleHere
from hack.cluster.kubectl import get, kubectl, ready_nodes
from hack.cluster.process import wait_for
from hack.cluster.tinyimage import PAUSE, pause_image


@pytest.fixture(scope="session")
def cluster() -> Iterator[Engine]:
    try:
        engine = choose()
    except NotPossibleHere as reason:
        if os.environ.get("CI") == "true":
            pytest.fail(str(reason))
        pytest.skip(str(reason))
    was_up = len(ready_nodes()) >= len(engine.nodes)
    engine.up(grace=20)
    engine.load([pause_image()])
    yield engine
    if not was_up:
        engine.down()


class Namespace:
    """A namespace that admits restricted pods only, and the few things that the tests do in it."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine = engine
        self.name = name

    def create(self, *documents: dict[str, Any]) -> None:
        items = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
        kubectl("apply", "-n", self.name, "-f", "-", stdin=json.dumps(items))

    def pod(self, name: str, node: int, *args: str, claim: str = "") -> None:
        """Start a pod with the tool of the pause image on the first or second node."""
        security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        container: dict[str, Any] = {
            "name": "main",
            "image": PAUSE,
            "imagePullPolicy": "IfNotPresent",
            "args": list(args),
            "securityContext": {**security, "readOnlyRootFilesystem": True},
        }
        seccomp = {"type": "RuntimeDefault"}
        spec: dict[str, Any] = {
            "restartPolicy": "Never",
            "nodeSelector": {"kubernetes.io/hostname": self.engine.nodes[node]},
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "seccompProfile": seccomp,
            },
            "containers": [container],
        }
        if claim:
            container["volumeMounts"] = [{"name": "shared", "mountPath": "/shared"}]
            source = {"name": "shared", "persistentVolumeClaim": {"claimName": claim}}
            spec["volumes"] = [source]
        metadata = {"name": name, "labels": {"app": name}}
        self.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})

    def output(self, pod: str, seconds: float = 60) -> str:
        """What a pod printed, once it has succeeded."""
        self.wait_phase(pod, "Succeeded", seconds)
        return kubectl("logs", "-n", self.name, pod)

    def wait_phase(self, pod: str, wanted: str, seconds: float = 60) -> None:
        def reached() -> bool:
            status = get("pod", pod, "-n", self.name)["status"]
            if status.get("phase") == "Failed" != wanted:
                raise ClusterError(f"pod {pod} failed: {kubectl('logs', '-n', self.name, pod)}")
            return bool(status.get("phase") == wanted)

        wait_for(reached, seconds, f"pod {pod} to be {wanted}", 0.2)


@pytest.fixture
def namespace(cluster: Engine) -> Iterator[Namespace]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    document = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": labels},
    }
    kubectl("create", "-f", "-", stdin=json.dumps(document))
    yield Namespace(cluster, name)
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def healthy(cluster: Engine) -> Iterator[Callable[[], None]]:
    """Waits until both nodes are Ready, also after the test, regardless of what it did to them."""

    def wait() -> None:
        both = set(cluster.nodes)
        wait_for(lambda: both <= set(ready_nodes()), 120, "both nodes to be Ready", 0.2)

    yield wait
    wait()
