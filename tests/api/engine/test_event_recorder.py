"""Events about namespaced and cluster-scoped objects, on a real API server."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest
from finetune_operator.decision import EventRecord, Manifest
from finetune_operator.engine.event_recorder import EventRecorder
from finetune_operator.engine.kube_client import KubeClient

from hack.cluster.apiserver import ControlPlane
from tests.api.client import Api
from tests.api.engine import toy
from tests.unit.jobs.world import CPU_PROFILE

EVENT = EventRecord("Warning", "InternalError", "the operator failed")


def make_profile() -> Manifest:
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "AcceleratorProfile",
        "metadata": {"name": f"pool-{uuid.uuid4().hex[:8]}"},
        "spec": CPU_PROFILE,
    }


@pytest.mark.parametrize("is_namespaced", [True, False])
async def test_an_event_is_stored_and_its_repetitions_are_counted(
    control_plane: ControlPlane, api: Api, namespace: str, is_namespaced: bool
) -> None:
    about = api.create(toy.finetune_job(namespace, "a") if is_namespaced else make_profile())
    times = iter(datetime.now(UTC) + timedelta(minutes=n) for n in range(2))
    client = await KubeClient.connect(str(control_plane.kubeconfig))
    try:
        recorder = EventRecorder(client, "test", lambda: next(times))
        for _ in range(2):
            await recorder.record(about, EVENT)
    finally:
        await client.close()
    where = namespace if is_namespaced else "default"
    found = [
        each
        for each in api.list("Event", where)
        if each["involvedObject"]["uid"] == about["metadata"]["uid"]
    ]
    assert [each["count"] for each in found] == [2]
    assert found[0]["involvedObject"].get("namespace") == about["metadata"].get("namespace")
