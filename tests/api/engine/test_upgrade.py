"""Another version of the operator at work on the same objects, at the real API server."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.controllers import build_controllers
from finetune_operator.decision import Reconcile, Settings

from tests.api.client import Api, Manifest
from tests.api.engine import toy
from tests.api.engine.conftest import Bench

OLD = Settings(trainer_image="registry.example/trainer:1", serving_image="vllm:1")
NEW = replace(
    OLD,
    trainer_image="registry.example/trainer:2",
    serving_image="vllm:2",
    image_pull_policy="Always",
    trainer_service_account="trainer",
    workspace_size="1Ti",
)


def reconcile_job(settings: Settings) -> Reconcile:
    return build_controllers(settings).reconcile["FineTuneJob"]


def profile(name: str) -> Manifest:
    """An AcceleratorProfile for one test."""
    spec = {"devicesPerNode": 1, "memoryPerDevice": "4Gi", "hostMemoryPerDevice": "3Gi"}
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "AcceleratorProfile",
        "metadata": {"name": name},
        "spec": spec,
    }


def children(api: Api, namespace: str) -> dict[str, tuple[str, str]]:
    """uid and resourceVersion of everything but the job itself and its events."""
    return {
        f"{kind} {found['metadata']['name']}": (
            found["metadata"]["uid"],
            found["metadata"]["resourceVersion"],
        )
        for kind in ("ConfigMap", "Job", "Pod", "Service", "PersistentVolumeClaim")
        for found in api.list(kind, namespace)
    }


def run_pod(api: Api, namespace: str, name: str) -> None:
    """A pod of the Job, as the Job controller and the kubelet leave it."""
    job = api.get("Job", namespace, name)
    template = job["spec"]["template"]
    metadata: Manifest = {
        "name": f"{name}-abcde",
        "namespace": namespace,
        "labels": template["metadata"]["labels"],
    }
    container = {"name": "trainer", "image": template["spec"]["containers"][0]["image"]}
    pod: dict[str, Any] = {"restartPolicy": "Never", "containers": [container]}
    api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod})
    status = {"phase": "Running", "podIP": "127.0.0.1"}
    api.patch("Pod", namespace, f"{name}-abcde", {"status": status}, "status")


async def restart_and_reconcile(bench: Bench, settings: Settings) -> None:
    """A new process with these settings lists and reconciles until nothing changes."""
    bench.forget_everything()
    await bench.list()
    for _ in range(4):
        assert await bench.reconcile(reconcile_job(settings), "a") in ("success", "requeue_after")


@pytest.mark.parametrize(
    ("before", "after"), [(OLD, NEW), (NEW, OLD)], ids=["upgrade", "downgrade"]
)
async def test_a_running_attempt_is_taken_over_without_a_write(
    bench: Bench, api: Api, namespace: str, before: Settings, after: Settings
) -> None:
    api.create(profile(namespace))
    job = toy.finetune_job(namespace, "a")
    api.create({**job, "spec": {**job["spec"], "compute": {"profile": namespace}}})
    await restart_and_reconcile(bench, before)
    run_pod(api, namespace, "a-prepare-1")
    await restart_and_reconcile(bench, before)
    assert api.get("FineTuneJob", namespace, "a")["status"]["phase"] == "Preparing"
    before_upgrade = children(api, namespace)
    events = len(api.list("Event", namespace))
    writes = bench.writes()

    await restart_and_reconcile(bench, after)

    assert children(api, namespace) == before_upgrade
    assert bench.writes() == writes
    assert len(api.list("Event", namespace)) == events
