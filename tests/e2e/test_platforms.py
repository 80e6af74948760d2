"""What platforms do to pods, on the real cluster."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finetune_operator.resources.security_context import (
    CONTAINER_SECURITY_CONTEXT,
    build_pod_security_context,
)
from kubernetes import client

from hack.cluster import engine
from hack.demo.kubectl import Kubectl
from hack.demo.platform import NAMESPACE, VALUES, Platform
from tests.e2e import only_python3
from tests.e2e.chaos import faults
from tests.e2e.history import JOB_LABEL, Watching
from tests.e2e.jobs import tiny_job, until, wait_for_phase
from tests.e2e.sidecars import SIDECAR, injected_sidecars

TRAINER_IMAGE = f"{VALUES['trainer.image.repository']}:{VALUES['trainer.image.tag']}"
ASSIGNED = 1000650000
"""A user as OpenShift assigns it; no image has an entry for it."""
SCRIPT = """
import getpass, os
import torch._inductor.codecache, finetune_trainer.train
print(os.getuid(), getpass.getuser(), os.path.expanduser("~"))
"""


def test_the_trainer_starts_as_a_user_that_the_cluster_assigns(running: Platform) -> None:
    name = "assigned-user"
    user = {"runAsUser": ASSIGNED, "fsGroup": ASSIGNED}
    container: dict[str, Any] = {
        "name": "trainer",
        "image": TRAINER_IMAGE,
        "command": ["python", "-c", SCRIPT],
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "USER", "value": "finetune"}],
        "securityContext": CONTAINER_SECURITY_CONTEXT,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    running.kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never",
                "securityContext": build_pod_security_context(None) | user,
                "containers": [container],
                "volumes": [{"name": "tmp", "emptyDir": {}}],
            },
        }
    )

    def ended() -> str | None:
        phase = str(running.kubectl.json("get", "pod", name)["status"].get("phase"))
        return phase if phase in ("Succeeded", "Failed") else None

    phase = until("the end of the pod", 120, ended, every=1.0)
    log = running.kubectl.run("logs", name)
    running.kubectl.run("delete", "pod", name)
    assert phase == "Succeeded", log
    assert log.split()[-3:] == [str(ASSIGNED), "finetune", "/tmp"]


class Containers(Watching):
    """The containers of every pod of a job."""

    def __init__(self, api: client.CoreV1Api, job: str) -> None:
        super().__init__(api.list_namespaced_pod, NAMESPACE)
        self._job = job
        self.names: dict[str, list[str]] = {}

    def _record(self, found: dict[str, Any]) -> None:
        if found["metadata"].get("labels", {}).get(JOB_LABEL) == self._job:
            names = [each["name"] for each in found["spec"]["containers"]]
            self.names[found["metadata"]["name"]] = names


@pytest.mark.long
def test_a_job_whose_pods_get_a_sidecar_that_runs_on_succeeds(
    running: Platform, core: client.CoreV1Api, tmp_path: Path
) -> None:
    faults.needs_nodes(engine.choose())
    name = "with-sidecar"
    mesh = injected_sidecars(running.kubectl, tmp_path / "pki", TRAINER_IMAGE, {JOB_LABEL: name})
    with Containers(core, name) as containers, mesh:
        running.kubectl.apply(tiny_job(name))
        found = wait_for_phase(running.kubectl, name, "Succeeded", 400)
        assert found["status"].get("restarts", 0) == 0
        assert len(containers.names) == 4
        assert all(names == ["trainer", SIDECAR] for names in containers.names.values())
        mine = ("get", "pods", "-l", f"{JOB_LABEL}={name}")
        until("its pods to go", 120, lambda: not running.kubectl.json(*mine)["items"])
    running.kubectl.run("delete", "finetunejob", name)


@pytest.mark.long
def test_a_job_runs_where_every_node_is_tainted(running: Platform) -> None:
    name, toleration = "tainted", {"key": "pool", "operator": "Equal", "value": "ml"}
    profile = running.kubectl.json("get", "acceleratorprofile", "cpu")
    spec = {**profile["spec"], "default": False, "tolerations": [toleration]}
    cpu_pods = json.dumps({"tolerations": [toleration]})
    with faults.operator_option(running.system, "--cpu-pods", cpu_pods), tainted(running.kubectl):
        running.kubectl.apply({**_bare(profile), "metadata": {"name": name}, "spec": spec})
        running.kubectl.apply(tiny_job(name, compute={"profile": name}))
        wait_for_phase(running.kubectl, name, "Succeeded", 400)
    running.kubectl.run("delete", "finetunejob", name)
    running.kubectl.run("delete", "acceleratorprofile", name)


@pytest.mark.long
def test_a_model_is_served_by_an_image_whose_only_python_is_python3(
    running: Platform, tmp_path: Path
) -> None:
    faults.needs_nodes(engine.choose())
    image = only_python3.import_variant(engine.choose(), tmp_path)
    name, kubectl = "only-python3", running.kubectl
    usual = kubectl.json("get", "acceleratorprofile", "cpu")["spec"]["serving"]
    # The context of the tiny model is shorter than what the profile serves.
    serving = {**usual, "image": image, "maxModelLen": 256}
    with faults.profile_with(kubectl, name, serving=serving, default=False):
        kubectl.apply(tiny_job(name, serve={"endpoint": name, "profile": name}))
        wait_for_phase(kubectl, name, "Succeeded", 900)
        (pod,) = kubectl.json("get", "pods", "-l", f"finetune.dev/endpoint={name}")["items"]
        assert pod["spec"]["containers"][0]["image"] == image
        script = "import shutil; print(shutil.which('python'), shutil.which('python3'))"
        found = kubectl.run("exec", pod["metadata"]["name"], "--", "python3", "-c", script)
        assert found.split() == ["None", "/opt/venv/bin/python3"]
        kubectl.run("delete", "modelendpoint", name)
    kubectl.run("delete", "finetunejob", name)


@contextlib.contextmanager
def tainted(kubectl: Kubectl) -> Iterator[None]:
    """Every node takes only pods that tolerate pool=ml."""
    try:
        kubectl.run("taint", "nodes", "--all", "pool=ml:NoSchedule")
        yield
    finally:
        kubectl.run("taint", "nodes", "--all", "pool=ml:NoSchedule-")


def _bare(manifest: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": manifest["apiVersion"], "kind": manifest["kind"]}
