"""The chart's NetworkPolicies, enforced: what a job needs is admitted, and nothing else.

Each refusal is shown to come from the policies: the same connection is made as soon as they are
removed, and refused again once they are back.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from finetune_operator.resources.security_context import (
    CONTAINER_SECURITY_CONTEXT,
    build_pod_security_context,
)

from hack.cluster import engine
from hack.cluster.kubectl import without_proxies
from hack.cluster.layout import CONTROL_PLANE, CONTROL_PLANE_IP
from hack.cluster.machine import Machine
from hack.demo import platform
from hack.demo.kubectl import Kubectl
from hack.demo.platform import NAMESPACE, VALUES, Platform
from hack.images.venv import ml_python
from hack.testservers.s3 import S3Server, s3_server
from tests.e2e.chaos import faults
from tests.e2e.history import JOB_LABEL, PodHistory
from tests.e2e.jobs import job, tiny_job, until, wait_for_phase

pytestmark = pytest.mark.long

NAME = "behind-policies"
CLIENT = {"access": "models"}
"""Label of the pods that may ask the served model."""
# The DNS server of this cluster is no pod.
ON = {
    "enabled": True,
    "dns": {"to": [{"ipBlock": {"cidr": f"{CONTROL_PLANE_IP}/32"}}]},
    "serving": {"from": [{"podSelector": {"matchLabels": CLIENT}}]},
}
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).close()
except OSError as error:
    print("refused:", error)
else:
    print("connected")
"""
ASK = """
import json, sys, urllib.request
answer = json.load(urllib.request.urlopen(sys.argv[1], timeout=60))
print(*(each["id"] for each in answer["data"]))
"""
UPLOAD = """
import sys
from pathlib import Path
import s3fs
from tests.trainer import tiny
rows = Path(sys.argv[1])
tiny.write_rows(rows, tiny.tiny_rows(64))
url, key, secret = sys.argv[2:]
store = s3fs.S3FileSystem(key=key, secret=secret, endpoint_url=url)
store.mkdir("acme")
store.put(str(rows), "acme/rows.jsonl")
"""


@pytest.fixture(scope="module")
def source(running: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An object store outside the network of the pods, with rows in it."""
    faults.needs_nodes(engine.choose())
    rows = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    network = Machine(CONTROL_PLANE).network()
    with s3_server(address=CONTROL_PLANE_IP, within=network) as server:
        words = [str(rows), server.url, server.access_key, server.secret_key]
        root = Path(__file__).resolve().parents[2]
        env = {**without_proxies(), "PYTHONPATH": str(root)}
        subprocess.run([str(ml_python()), "-c", UPLOAD, *words], check=True, cwd=root, env=env)
        running.kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": NAME},
                "stringData": {
                    "AWS_ENDPOINT_URL": server.url,
                    "AWS_ACCESS_KEY_ID": server.access_key,
                    "AWS_SECRET_ACCESS_KEY": server.secret_key,
                },
            }
        )
        yield server
        running.kubectl.run("delete", "secret", NAME)


@pytest.fixture(scope="module")
def policies(source: S3Server, running: Platform) -> Iterator[None]:
    """The cluster enforces the policies of the operator and of the namespace of the jobs."""
    engine.choose().up(platform.GRACE_SECONDS, network_policies=True)
    apply_policies(running.system, ON)
    names = running.kubectl.run("get", "networkpolicies", "-o", "name").split()
    assert len(names) == 5, names
    yield
    platform.set_values(running.system)


@pytest.fixture(scope="module")
def peers(policies: None, running: Platform) -> Iterator[list[str]]:
    """A client that is allowed, and on each node a pod that is not; returns the latter."""
    foreign = {f"foreign-{node}": node for node in engine.choose().nodes}
    running.kubectl.apply(peer("client", CLIENT), *(peer(n, {}, at) for n, at in foreign.items()))
    running.kubectl.run(
        "wait", "pod", "client", *foreign, "--for=condition=Ready", "--timeout=120s", timeout=150
    )
    yield list(foreign)
    running.kubectl.run("delete", "pod", "client", *foreign, "--grace-period=1")


@pytest.fixture(scope="module")
def served(peers: list[str], running: Platform, history: PodHistory) -> Iterator[dict[str, Any]]:
    """A job that has trained on both nodes, and whose model is served."""
    kubectl = running.kubectl
    rows = {"uri": "s3://acme/rows.jsonl", "credentialsSecretRef": {"name": NAME}}
    usual = kubectl.json("get", "acceleratorprofile", "cpu")["spec"]["serving"]
    # The context of the tiny model is shorter than what the profile serves.
    with faults.profile_with(kubectl, NAME, serving={**usual, "maxModelLen": 256}, default=False):
        kubectl.apply(
            tiny_job(
                NAME,
                dataset={"train": [rows]},
                compute={"nodes": 2},
                serve={"endpoint": NAME, "profile": NAME},
            )
        )
        yield wait_for_phase(kubectl, NAME, "Succeeded", 900)
        kubectl.run("delete", "modelendpoint", NAME)
    kubectl.run("delete", "finetunejob", NAME)


def test_a_stage_is_open_to_the_operator_only_and_reaches_nothing_outside(
    peers: list[str], running: Platform, source: S3Server
) -> None:
    kubectl, store = running.kubectl, urlsplit(source.url)
    with training(kubectl, "watched") as pod:
        stage = address(kubectl, pod)
        refused_by_policies(
            running,
            {
                **{f"{peer} -> telemetry": (peer, stage, 9400) for peer in ("client", *peers)},
                "training pod -> object store": (pod, str(store.hostname), int(store.port or 0)),
                "training pod -> API server": (pod, CONTROL_PLANE_IP, 6443),
            },
        )


def test_a_job_trains_and_is_served_with_all_policies_in_force(
    served: dict[str, Any], running: Platform, history: PodHistory
) -> None:
    assert served["status"].get("restarts", 0) == 0
    assert served["status"]["training"]["worldSize"] == 2
    assert len({pod.node for pod in history.of(NAME, "train")}) == 2
    host, kubectl = f"{NAME}.{NAMESPACE}", running.kubectl
    # The nodes learn of a Service's endpoints a moment after the job does, and a connection that
    # came earlier was seen to time out.
    until("the Service", 60, lambda: connect(kubectl, "client", host, 80) == "connected")
    # The operator has sent it a recorded prompt; the client asks what is served.
    url = f"http://{host}/v1/models"
    assert kubectl.run("exec", "client", "--", "python", "-c", ASK, url).split() == [NAME]


def test_a_served_model_is_open_to_those_that_the_values_name_only(
    served: dict[str, Any], peers: list[str], running: Platform
) -> None:
    kubectl = running.kubectl
    (found,) = kubectl.json("get", "pods", "-l", f"finetune.dev/endpoint={NAME}")["items"]
    model = address(kubectl, found["metadata"]["name"])
    assert connect(kubectl, "client", model, 8080) == "connected"
    refused_by_policies(running, {f"{peer} -> model": (peer, model, 8080) for peer in peers})


def refused_by_policies(running: Platform, connections: dict[str, tuple[str, str, int]]) -> None:
    """Hold that connections are refused with the policies, made without them, and refused again."""

    def outcomes() -> list[str]:
        found = {name: connect(running.kubectl, *each) for name, each in connections.items()}
        print("", *(f"{name}: {outcome}" for name, outcome in found.items()), sep="\n  ")
        return list(found.values())

    def all_refused() -> bool:
        return all(outcome.startswith("refused") for outcome in outcomes())

    def all_connected() -> bool:
        return set(outcomes()) == {"connected"}

    assert all_refused()
    try:
        apply_policies(running.system, {**ON, "enabled": False})
        until("every connection to be made without policies", 60, all_connected, every=1)
    finally:
        apply_policies(running.system, ON)
    until("every connection to be refused again", 60, all_refused, every=1)


def apply_policies(system: Kubectl, values: dict[str, Any]) -> None:
    """Upgrade the operator, which watches the namespace of the jobs, to these policies."""
    watched = f"--set-json=watchNamespaces={json.dumps([NAMESPACE])}"
    platform.set_values(system, watched, f"--set-json=networkPolicy={json.dumps(values)}")


@contextlib.contextmanager
def training(kubectl: Kubectl, name: str) -> Iterator[str]:
    """A job that trains and of which the operator has read the progress; returns its pod."""
    kubectl.apply(tiny_job(name, training={"maxSteps": 100000, "epochs": 1000}))
    try:
        until(f"progress of {name}", 300, lambda: _steps(job(kubectl, name)), every=1)
        found = kubectl.json("get", "pods", "-l", f"{JOB_LABEL}={name},finetune.dev/stage=train")
        (pod,) = found["items"]
        yield str(pod["metadata"]["name"])
    finally:
        kubectl.run("delete", "finetunejob", name)


def peer(name: str, labels: dict[str, str], node: str | None = None) -> dict[str, Any]:
    """A pod that only waits; no policy of the operator selects it."""
    container = {
        "name": "main",
        "image": f"{VALUES['trainer.image.repository']}:{VALUES['trainer.image.tag']}",
        "command": ["python", "-c", "import signal; signal.pause()"],
        "securityContext": CONTAINER_SECURITY_CONTEXT,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "securityContext": build_pod_security_context(None),
            "containers": [container],
            **({"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}),
        },
    }


def connect(kubectl: Kubectl, pod: str, host: str, port: int) -> str:
    """What comes of a TCP connection from a pod: `connected`, or `refused: ` and the error."""
    return kubectl.run("exec", pod, "--", "python", "-c", CONNECT, host, str(port)).strip()


def address(kubectl: Kubectl, pod: str) -> str:
    """The address of a pod."""
    return str(kubectl.json("get", "pod", pod)["status"]["podIP"])


def _steps(found: dict[str, Any]) -> int:
    progress = found.get("status", {}).get("progress") or {}
    return int(progress.get("step", 0)) if progress.get("stage") == "train" else 0
