"""A leader that was deposed, or whose watch is dead, writes nothing.

It believes that it leads and decides on its outdated cache. The real API server rejects the first
write of its decision, which carries an old resourceVersion; no second one follows.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import datetime

import pytest
from finetune_operator.decision import Decision, Key, Manifest, ObjectRef, View
from finetune_operator.engine.kube_client import KubeClient

from hack.cluster.apiserver import ControlPlane
from tests.api.client import Api
from tests.api.engine import toy
from tests.api.engine.conftest import Bench


@pytest.fixture
async def deposed(control_plane: ControlPlane, namespace: str) -> AsyncIterator[Bench]:
    """Another process, whose cache sees only what the test lists into it."""
    client = await KubeClient.connect(str(control_plane.kubeconfig))
    yield Bench(client, namespace)
    await client.close()


def state(api: Api, namespace: str) -> dict[str, str]:
    """Everything that an operator may write, by its resourceVersion."""
    return {
        f"{kind} {found['metadata']['name']}": found["metadata"]["resourceVersion"]
        for kind in ("FineTuneJob", "ConfigMap", "Job", "Service", "Event")
        for found in api.list(kind, namespace)
    }


def count_conflicts(bench: Bench) -> dict[str, float]:
    """Writes rejected with 409 by verb, as /metrics exports them."""
    family = next(iter(bench.metrics.writes.collect()))
    return {
        each.labels["verb"]: each.value
        for each in family.samples
        if each.name.endswith("_total") and each.labels["result"] == "Conflict"
    }


async def test_a_deposed_leader_creates_nothing_from_an_old_cache(
    bench: Bench, deposed: Bench, api: Api, namespace: str
) -> None:
    api.create(toy.finetune_job(namespace, "a"))
    await deposed.list()
    await bench.list()
    await bench.reconcile(toy.reconcile, "a")
    api.delete("Job", namespace, "a-prepare-1")  # as that of a suspended job
    before = state(api, namespace)

    assert await deposed.reconcile(toy.reconcile, "a") == "conflict"

    assert state(api, namespace) == before
    assert count_conflicts(deposed) == {"status": 1}
    assert deposed.writes() == {}


async def test_a_deposed_leader_deletes_nothing_though_its_status_would_be_the_same(
    bench: Bench, deposed: Bench, api: Api, namespace: str
) -> None:
    job = api.create(toy.finetune_job(namespace, "a"))
    child = api.create(toy.config_map(job))
    await bench.list()
    await bench.reconcile(toy.reconcile, "a")
    await deposed.list()

    def start_training(_key: Key, _view: View, _now: datetime) -> Decision:
        return Decision(status=toy.status("Training"))

    def delete_child(_key: Key, _view: View, _now: datetime) -> Decision:
        ref = ObjectRef("ConfigMap", namespace, "a-prepare-1", child["metadata"]["uid"])
        return Decision(status=toy.status("Preparing"), delete=(ref,))

    await bench.reconcile(start_training, "a")
    before = state(api, namespace)

    assert await deposed.reconcile(delete_child, "a") == "conflict"

    assert state(api, namespace) == before
    assert count_conflicts(deposed) == {"fence": 1}
    await deposed.list()
    await deposed.reconcile(delete_child, "a")
    assert "ConfigMap a-prepare-1" not in state(api, namespace), (
        "the same decision on a current cache is carried out"
    )


async def test_a_fence_changes_nothing(bench: Bench, api: Api, namespace: str) -> None:
    api.create(toy.finetune_job(namespace, "a"))
    await bench.list()
    await bench.reconcile(toy.reconcile, "a")
    version = api.get("FineTuneJob", namespace, "a")["metadata"]["resourceVersion"]
    api.delete("Job", namespace, "a-prepare-1")
    await bench.list()

    await bench.reconcile(toy.reconcile, "a")

    assert bench.writes() == {"status": 1, "create": 3, "fence": 1}
    assert api.get("FineTuneJob", namespace, "a")["metadata"]["resourceVersion"] == version


async def test_a_job_that_was_deleted_meanwhile_gets_no_children(
    bench: Bench, api: Api, namespace: str
) -> None:
    api.create(toy.finetune_job(namespace, "a"))
    await bench.list()
    api.delete("FineTuneJob", namespace, "a")

    assert await bench.reconcile(toy.reconcile, "a") == "conflict"
    assert not state(api, namespace)


async def test_a_key_without_an_object_is_fenced_by_the_lease(
    bench: Bench, api: Api, namespace: str
) -> None:
    deleted = toy.finetune_job(namespace, "gone") | {"apiVersion": "finetune.dev/v1alpha1"}
    deleted["metadata"]["uid"] = "11111111-2222-3333-4444-555555555555"

    def start_janitor(_key: Key, _view: View, _now: datetime) -> Decision:
        return Decision(create=(toy.batch_job(deleted),))

    bench.holds_lease = False
    assert await bench.reconcile(start_janitor, "gone/uid", "Workspace") == "not_leading"
    assert not api.list("Job", namespace)

    bench.holds_lease = True
    await bench.reconcile(start_janitor, "gone/uid", "Workspace")
    assert [each["metadata"]["name"] for each in api.list("Job", namespace)] == ["gone-prepare-1"]


async def test_the_fence_takes_less_than_half_a_second(
    bench: Bench, api: Api, namespace: str
) -> None:
    job: Manifest = api.create(toy.finetune_job(namespace, "a"))
    await bench.list()
    await bench.reconcile(toy.reconcile, "a")
    ports, took = iter(range(1000, 1040)), []

    def change_port(_key: Key, _view: View, _now: datetime) -> Decision:
        return Decision(apply=(toy.service(job, (next(ports),)),))

    for _ in range(20):
        started = time.perf_counter()
        await bench.reconcile(change_port, "a")
        took.append(time.perf_counter() - started)

    took.sort()
    print(f"\na fence and an apply: median {took[10] * 1000:.1f} ms, slowest {took[-1] * 1000:.1f}")
    assert took[10] < 0.5
