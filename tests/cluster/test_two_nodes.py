"""The local cluster is a cluster: two nodes, real networking, shared storage, admission, faults."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from hack.cluster import volumes
from hack.cluster.engine import Engine, make_volume
from hack.cluster.errors import ClusterError
from hack.cluster.kubectl import answers, get, kubectl, ready_nodes
from hack.cluster.paths import VOLUMES
from hack.cluster.process import wait_for
from tests.cluster.conftest import Namespace

# The first test may have to build Kubernetes.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


def test_both_nodes_are_ready_and_run_the_pinned_version(cluster: Engine) -> None:
    assert set(cluster.nodes) <= set(ready_nodes())
    nodes = [n for n in get("nodes")["items"] if n["metadata"]["name"] in cluster.nodes]
    assert {n["status"]["nodeInfo"]["kubeletVersion"].rsplit(".", 1)[0] for n in nodes} == {"v1.35"}


def test_a_pod_reaches_a_pod_on_the_other_node_by_service_name(namespace: Namespace) -> None:
    namespace.pod("web", 0, "serve", ":8080", "hello from the other node")
    ports = [{"port": 80, "targetPort": 8080}]
    spec = {"selector": {"app": "web"}, "ports": ports}
    namespace.create(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": spec}
    )
    url = f"http://web.{namespace.name}.svc.cluster.local"
    for node in (0, 1):
        namespace.pod(f"client{node}", node, "fetch", url, "30")
        assert namespace.output(f"client{node}") == "hello from the other node"


def test_a_file_written_on_one_node_is_read_on_the_other(namespace: Namespace) -> None:
    namespace.create(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "work"},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }
    )
    namespace.pod("writer", 0, "write", "/shared/note", "shared by two nodes", claim="work")
    namespace.output("writer")
    namespace.pod("reader", 1, "read", "/shared/note", claim="work")
    assert namespace.output("reader") == "shared by two nodes"


def test_a_released_volume_is_offered_again_and_empty(
    cluster: Engine, namespace: Namespace
) -> None:
    name = f"pvc-{namespace.name}"
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    kind = {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
    namespace.create({**kind, "metadata": {"name": name}, "spec": claim})
    bound = ("get", "pvc", name, "-n", namespace.name, "-o", "jsonpath={.spec.volumeName}")
    volume = wait_for(lambda: kubectl(*bound), 30, "the claim to be bound")
    namespace.pod("writer", 0, "write", "/shared/secret", "old", claim=name)
    namespace.output("writer")
    kubectl("delete", "pod", "writer", "-n", namespace.name)
    kubectl("delete", "pvc", name, "-n", namespace.name)
    phase = ("get", "pv", volume, "-o", "jsonpath={.status.phase}")
    wait_for(lambda: answers(*phase, wanted="Released"), 30, "the volume to be released")

    volumes.offer(cluster.volumes_folder())

    wait_for(lambda: answers(*phase, wanted="Available"), 30, "the volume to be available")
    assert list((VOLUMES / volume).iterdir()) == []


def test_files_placed_in_a_made_volume_are_seen_by_pods_on_both_nodes(
    namespace: Namespace,
) -> None:
    name = f"input-{namespace.name}"
    folder = make_volume(name, namespace.name, "input")
    (folder / "data.jsonl").write_text('{"a": 1}')
    try:
        for node in (0, 1):
            namespace.pod(f"reader{node}", node, "read", "/shared/data.jsonl", claim="input")
            assert json.loads(namespace.output(f"reader{node}")) == {"a": 1}
    finally:
        kubectl("delete", "pv", name, "--wait=false")


def test_a_restricted_namespace_refuses_a_plain_pod_and_says_why(namespace: Namespace) -> None:
    container = {"name": "main", "image": "localhost/pause:1"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "plain"}}
    with pytest.raises(ClusterError, match="allowPrivilegeEscalation != false"):
        namespace.create({**pod, "spec": {"containers": [container]}})


def test_a_restricted_pod_runs_as_an_unprivileged_user(namespace: Namespace) -> None:
    namespace.pod("who", 0, "whoami")
    assert namespace.output("who").strip() == "65532:65532@who"


def _not_ready(node: str) -> None:
    wait_for(lambda: node not in ready_nodes(), 90, f"{node} to be NotReady", 0.2)


def test_a_node_without_power_is_not_ready_and_comes_back(
    cluster: Engine, namespace: Namespace, healthy: Callable[[], None]
) -> None:
    node = cluster.nodes[1]
    cluster.power_off(node)
    try:
        _not_ready(node)
    finally:
        cluster.power_on(node)
    healthy()
    namespace.pod("after", 1, "whoami")
    assert namespace.output("after", 120).endswith("@after\n")


def test_a_node_without_network_is_not_ready_and_comes_back(
    cluster: Engine, healthy: Callable[[], None]
) -> None:
    node = cluster.nodes[1]
    cluster.link(node, up=False)
    try:
        _not_ready(node)
    finally:
        cluster.link(node, up=True)
    healthy()


def test_a_frozen_node_does_not_answer_until_it_is_thawed(
    cluster: Engine, healthy: Callable[[], None]
) -> None:
    node = cluster.nodes[1]
    ping = ("get", "--raw", f"/api/v1/nodes/{node}/proxy/healthz", "--request-timeout=2s")
    assert answers(*ping, wanted="ok")
    cluster.freeze(node)
    try:
        assert not answers(*ping)
    finally:
        cluster.thaw(node)
    wait_for(lambda: answers(*ping, wanted="ok"), 30, f"{node} to answer")
    healthy()
