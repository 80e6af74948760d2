"""The writes of a reconcile, seen at the real API server."""

from __future__ import annotations

from datetime import datetime

import pytest
from finetune_operator.decision import Decision, Key, Manifest, ObjectRef, View

from tests.api.client import Api
from tests.api.engine import toy
from tests.api.engine.conftest import Bench


def uids(api: Api, namespace: str) -> dict[str, str]:
    return {
        f"{kind} {found['metadata']['name']}": found["metadata"]["uid"]
        for kind in ("ConfigMap", "Job")
        for found in api.list(kind, namespace)
    }


async def test_children_are_created_once_and_an_equal_status_is_not_written_again(
    bench: Bench, api: Api, namespace: str
) -> None:
    api.create(toy.finetune_job(namespace, "a"))
    await bench.list()
    await bench.reconcile(toy.reconcile, "a")
    created = uids(api, namespace)
    assert sorted(created) == ["ConfigMap a-prepare-1", "Job a-prepare-1"]
    assert bench.writes() == {"create": 2, "status": 1}
    version = api.get("FineTuneJob", namespace, "a")["metadata"]["resourceVersion"]

    await bench.reconcile(toy.reconcile, "a")  # the cache has only the answers to its own writes

    assert uids(api, namespace) == created
    assert bench.writes() == {"create": 2, "status": 1}
    assert api.get("FineTuneJob", namespace, "a")["metadata"]["resourceVersion"] == version


@pytest.mark.parametrize("writes", range(5))
@pytest.mark.parametrize("stale", [False, True], ids=["all listed", "children not listed yet"])
async def test_a_crash_between_any_two_writes_is_repaired_by_the_next_process(
    bench: Bench, api: Api, namespace: str, writes: int, stale: bool
) -> None:
    api.create(toy.finetune_job(namespace, "a"))
    await bench.list()
    left = iter([True] * writes)
    bench.is_leader = lambda: next(left, False)
    await bench.reconcile(toy.reconcile, "a")
    before = uids(api, namespace)
    assert len(before) == max(0, min(writes - 1, 2)), "the status is the first write"
    assert ("phase" in api.get("FineTuneJob", namespace, "a")["status"]) == (writes > 0)

    bench.forget_everything()
    bench.is_leader = lambda: True
    await bench.list(*(["FineTuneJob"] if stale else []))
    await bench.reconcile(toy.reconcile, "a")

    after = uids(api, namespace)
    assert len(after) == 2
    assert before.items() <= after.items(), "no child was created twice or replaced"
    assert api.get("FineTuneJob", namespace, "a")["status"]["phase"] == "Preparing"


async def test_a_child_name_that_is_taken_stops_the_decision_and_is_reported(
    bench: Bench, api: Api, namespace: str
) -> None:
    job = api.create(toy.finetune_job(namespace, "a"))
    other = toy.config_map(job)
    del other["metadata"]["ownerReferences"]
    api.create(other)
    await bench.list("FineTuneJob")

    assert await bench.reconcile(toy.reconcile, "a") == "error"

    assert not api.list("Job", namespace)
    reported = api.get("FineTuneJob", namespace, "a")["status"]
    assert reported["phase"] == "Preparing", "the phase that was decided"
    assert f"ConfigMap {namespace}/a-prepare-1 exists already" in reported["message"]
    [stalled] = [each for each in reported["conditions"] if each["type"] == "Stalled"]
    assert (stalled["status"], stalled["reason"]) == ("True", "NameTaken")
    events = {e["reason"]: e for e in api.list("Event", namespace)}
    assert sorted(events) == ["NameTaken", "Preparing"], "the phase's event is not lost"
    assert f"ConfigMap {namespace}/a-prepare-1 exists already" in events["NameTaken"]["message"]

    assert await bench.reconcile(toy.reconcile, "a") == "error"
    assert api.get("FineTuneJob", namespace, "a")["status"] == reported, "it does not flap"
    api.delete("ConfigMap", namespace, "a-prepare-1")
    assert await bench.reconcile(toy.reconcile, "a") in ("success", "requeue_after")
    settled = api.get("FineTuneJob", namespace, "a")["status"]
    assert "message" not in settled
    assert "conditions" not in settled
    assert len(api.list("Event", namespace)) == 2, "no event is recorded twice"


async def test_a_child_that_another_version_of_the_operator_created_meanwhile_is_accepted(
    bench: Bench, api: Api, namespace: str
) -> None:
    job = api.create(toy.finetune_job(namespace, "a"))
    await bench.list()
    api.create(toy.config_map(job, digest="another"))
    before = uids(api, namespace)

    assert await bench.reconcile(toy.reconcile, "a") == "conflict"
    assert await bench.reconcile(toy.reconcile, "a") in ("success", "requeue_after")

    after = uids(api, namespace)
    assert sorted(after) == ["ConfigMap a-prepare-1", "Job a-prepare-1"]
    assert before.items() <= after.items()
    assert {e["reason"] for e in api.list("Event", namespace)} == {"Preparing"}


async def test_our_own_child_with_another_hash_is_not_taken_for_the_desired_one(
    bench: Bench, api: Api, namespace: str
) -> None:
    job = api.create(toy.finetune_job(namespace, "a"))
    child = api.create(toy.config_map(job, digest="another"))
    await bench.list()

    def create_again(_key: Key, _view: View, _now: datetime) -> Decision:
        return Decision(create=(toy.config_map(job),), status=toy.status("Preparing"))

    assert await bench.reconcile(create_again, "a") == "error"
    assert "NameTaken" in {e["reason"] for e in api.list("Event", namespace)}
    kept = api.get("ConfigMap", namespace, "a-prepare-1")["metadata"]
    assert kept["resourceVersion"] == child["metadata"]["resourceVersion"]


async def test_a_status_decided_on_an_outdated_object_is_refused(
    bench: Bench, api: Api, namespace: str
) -> None:
    api.create(toy.finetune_job(namespace, "a"))
    await bench.list()
    api.patch("FineTuneJob", namespace, "a", {"metadata": {"annotations": {"by": "user"}}})

    assert await bench.reconcile(toy.reconcile, "a") == "conflict"
    assert "phase" not in api.get("FineTuneJob", namespace, "a")["status"]
    assert not uids(api, namespace), "nothing of the decision is carried out"
    assert not api.list("Event", namespace), "events follow their status"

    await bench.list()
    assert await bench.reconcile(toy.reconcile, "a") in ("success", "requeue_after")
    assert api.get("FineTuneJob", namespace, "a")["status"]["phase"] == "Preparing"
    assert [e["reason"] for e in api.list("Event", namespace)] == ["Preparing"]


async def test_apply_writes_only_what_differs(bench: Bench, api: Api, namespace: str) -> None:
    api.create(toy.finetune_job(namespace, "a"))
    await bench.list()

    def decide(key: Key, view: View, now: datetime) -> Decision:
        job = view.get(key.kind, key.namespace, key.name)
        assert job is not None
        return Decision(apply=(toy.service(job, ports),))

    async def apply() -> Manifest:
        bench.forget_everything()
        await bench.list()
        await bench.reconcile(decide, "a")
        return api.get("Service", namespace, "a-svc")

    ports: tuple[int, ...] = (80,)
    first = await apply()
    again = await apply()
    assert bench.writes() == {"apply": 1, "fence": 1}, (
        "defaults that the server adds are no difference"
    )
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]

    change = {"spec": {"selector": {"app": "another"}}}
    api.patch("Service", namespace, "a-svc", change)
    repaired = await apply()
    assert repaired["spec"]["selector"] == {"app": "x"}

    ports = (80, 81)
    assert len((await apply())["spec"]["ports"]) == 2
    ports = (80,)
    assert len((await apply())["spec"]["ports"]) == 1
    assert bench.writes() == {"apply": 4, "fence": 4}


async def test_only_the_object_with_the_given_uid_is_deleted(
    bench: Bench, api: Api, namespace: str
) -> None:
    job = api.create(toy.finetune_job(namespace, "a"))
    child = api.create(toy.config_map(job))
    await bench.list()
    uid = "00000000-0000-0000-0000-000000000000"

    def decide(key: Key, view: View, now: datetime) -> Decision:
        return Decision(delete=(ObjectRef("ConfigMap", namespace, "a-prepare-1", uid),))

    assert await bench.reconcile(decide, "a") == "success"
    assert api.get("ConfigMap", namespace, "a-prepare-1")

    uid = child["metadata"]["uid"]
    await bench.reconcile(decide, "a")
    assert not [c for c in api.list("ConfigMap", namespace) if c["metadata"]["uid"] == uid]
    assert bench.cache.get("ConfigMap", namespace, "a-prepare-1") is None
    assert await bench.reconcile(decide, "a") == "success", (
        "an object that does not exist is deleted"
    )


async def test_a_status_that_the_schema_refuses_is_reported_by_an_event(
    bench: Bench, api: Api, namespace: str
) -> None:
    api.create(toy.finetune_job(namespace, "a"))
    await bench.list()

    def decide(key: Key, view: View, now: datetime) -> Decision:
        return Decision(status={"phase": "Dancing"})

    assert await bench.reconcile(decide, "a") == "error"
    [event] = api.list("Event", namespace)
    assert (event["type"], event["reason"]) == ("Warning", "Refused")
    assert "Dancing" in event["message"]


async def test_an_endpoint_that_a_job_creates_is_enqueued_without_waiting_for_the_watch(
    bench: Bench, api: Api, namespace: str
) -> None:
    api.create(toy.finetune_job(namespace, "a"))
    await bench.list()
    await bench.drain()
    endpoint: Manifest = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "ModelEndpoint",
        "metadata": {"name": "served", "namespace": namespace},
        "spec": {"artifact": {"uri": "pvc://claim/folder", "digest": f"sha256:{'0' * 64}"}},
    }

    def decide(_key: Key, _view: View, _now: datetime) -> Decision:
        return Decision(create=(endpoint,))

    await bench.reconcile(decide, "a")

    assert Key("ModelEndpoint", namespace, "served") in await bench.drain()


async def test_a_status_write_enqueues_its_key_although_no_watch_will(
    bench: Bench, api: Api, namespace: str
) -> None:
    api.create(toy.finetune_job(namespace, "a"))
    await bench.list()
    await bench.drain()

    def decide(_key: Key, _view: View, _now: datetime) -> Decision:
        return Decision(status=toy.status("Failed"))

    await bench.reconcile(decide, "a")
    enqueued = {key.kind: key.name for key in await bench.drain()}
    assert enqueued["FineTuneJob"] == "a", "the next decision may be another one"
    assert set(enqueued) <= {"FineTuneJob", "Workspace"}
    await bench.reconcile(decide, "a")
    assert await bench.drain() == [], "an equal status changes nothing"


async def test_a_child_that_the_server_rejects_is_reported_once_in_the_status(
    bench: Bench, api: Api, namespace: str
) -> None:
    api.create(toy.finetune_job(namespace, "a"))
    await bench.list()

    def decide(key: Key, view: View, _now: datetime) -> Decision:
        job = view.get(key.kind, key.namespace, key.name)
        assert job is not None
        child = toy.batch_job(job)
        child["spec"]["template"]["spec"]["containers"] = []
        return Decision(create=(child,), status=toy.status("Preparing"))

    assert await bench.reconcile(decide, "a") == "error"
    reported = api.get("FineTuneJob", namespace, "a")
    assert reported["status"]["phase"] == "Preparing"
    assert "spec.template.spec.containers: Required value" in reported["status"]["message"]

    assert await bench.reconcile(decide, "a") == "error"
    again = api.get("FineTuneJob", namespace, "a")
    assert again["metadata"]["resourceVersion"] == reported["metadata"]["resourceVersion"]


async def test_a_quota_is_reported_and_the_job_continues_when_it_is_lifted(
    bench: Bench, api: Api, namespace: str
) -> None:
    quota = {"count/jobs.batch": "0"}
    created = api.create(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"namespace": namespace, "name": "none"},
            "spec": {"hard": quota},
        }
    )
    path = f"/api/v1/namespaces/{namespace}/resourcequotas/none"
    api.request("PUT", f"{path}/status", {**created, "status": {"hard": quota, "used": quota}})
    api.create(toy.finetune_job(namespace, "a"))
    await bench.list()

    assert await bench.reconcile(toy.reconcile, "a") == "error"
    status = api.get("FineTuneJob", namespace, "a")["status"]
    assert "exceeded quota: none, requested: count/jobs.batch=1" in status["message"]
    [stalled] = [each for each in status["conditions"] if each["type"] == "Stalled"]
    assert (stalled["status"], stalled["reason"]) == ("True", "Forbidden")

    api.request("DELETE", path)
    assert await bench.reconcile(toy.reconcile, "a") in ("success", "requeue_after")
    assert "Job a-prepare-1" in uids(api, namespace)
    assert "message" not in api.get("FineTuneJob", namespace, "a")["status"]
