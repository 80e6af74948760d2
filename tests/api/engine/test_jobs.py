"""The product's own plans on the real API server: its schema, its rules, its deletions.

What the jobs' unit tests take for granted: that a status of every kind is admitted, that the spec
is frozen by the write that starts a job, and that a job goes only by its own uid.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from finetune_operator.controllers import controllers
from finetune_operator.decision import Settings

from tests.api.client import Api, ApiError, Manifest
from tests.api.engine import toy
from tests.api.engine.conftest import Bench

PLAN = controllers(Settings(trainer_image="trainer", serving_image="vllm")).plans["FineTuneJob"]
ELSEWHERE = {"uri": "pvc://finetune-workspace/jobs/somebody-elses"}


@pytest.fixture
def profile(api: Api) -> Iterator[str]:
    """A pool to run on."""
    name = f"pool-{uuid.uuid4().hex[:8]}"
    made = {"apiVersion": "finetune.dev/v1alpha1", "kind": "AcceleratorProfile"}
    api.create({**made, "metadata": {"name": name}, "spec": {"memoryPerDevice": "8Gi"}})
    yield name
    api.delete("AcceleratorProfile", "", name)


def wish(namespace: str, **spec: Any) -> Manifest:
    manifest = toy.finetune_job(namespace, "wish")
    return {**manifest, "spec": {**manifest["spec"], **spec}}


async def settle(bench: Bench) -> None:
    """Look until nothing is written any more."""
    await bench.list()
    before: dict[str, float] | None = None
    while before != (before := bench.writes()):
        await bench.reconcile(PLAN, "wish")


async def test_a_suspended_job_may_be_edited_until_it_is_resumed_and_freezes_then(
    bench: Bench, api: Api, namespace: str, profile: str
) -> None:
    api.create(wish(namespace, suspend=True, compute={"profile": profile}))
    await settle(bench)
    status = api.get("FineTuneJob", namespace, "wish")["status"]
    assert (status["phase"], status["message"]) == ("Suspended", "suspended before prepare")
    assert api.list("Job", namespace) == []

    edit = {"spec": {"training": {"epochs": 5}, "suspend": False}}
    api.patch("FineTuneJob", namespace, "wish", edit)
    await settle(bench)
    assert api.get("FineTuneJob", namespace, "wish")["status"]["startedAt"]
    (batch,) = api.list("Job", namespace)
    with pytest.raises(ApiError, match="training cannot change once the job has begun"):
        api.patch("FineTuneJob", namespace, "wish", {"spec": {"training": {"epochs": 6}}})

    api.patch("FineTuneJob", namespace, "wish", {"spec": {"suspend": True}})
    await settle(bench)
    assert api.get("FineTuneJob", namespace, "wish")["status"]["phase"] == "Suspended"
    assert batch["metadata"]["uid"] not in uids(api, "Job", namespace)

    api.patch("FineTuneJob", namespace, "wish", {"spec": {"suspend": False}})
    await settle(bench)
    assert [job["metadata"]["name"] for job in api.list("Job", namespace)] == ["wish-prepare-2"]


async def test_a_job_goes_when_its_time_to_live_is_over(
    bench: Bench, api: Api, namespace: str, profile: str
) -> None:
    """Also when that is set after the end; it is refused before anything starts."""
    api.create(wish(namespace, model=ELSEWHERE, compute={"profile": profile}))
    await settle(bench)
    ended = api.get("FineTuneJob", namespace, "wish")["status"]
    assert (ended["phase"], ended["failure"]["reason"]) == ("Failed", "NotAnArtifact")

    api.patch("FineTuneJob", namespace, "wish", {"spec": {"ttlSecondsAfterFinished": 3600}})
    await settle(bench)
    assert api.get("FineTuneJob", namespace, "wish")["status"]["observedGeneration"] == 2

    api.patch("FineTuneJob", namespace, "wish", {"spec": {"ttlSecondsAfterFinished": 0}})
    await settle(bench)
    assert api.list("FineTuneJob", namespace) == []


async def test_a_new_job_of_the_same_name_does_not_go_for_the_old_one(
    bench: Bench, api: Api, namespace: str, profile: str
) -> None:
    spec = {"model": ELSEWHERE, "compute": {"profile": profile}, "ttlSecondsAfterFinished": 0}
    api.create(wish(namespace, **spec))
    await bench.list()
    await bench.reconcile(PLAN, "wish")
    api.delete("FineTuneJob", namespace, "wish")
    new = api.create(wish(namespace, **spec))
    await bench.reconcile(PLAN, "wish")
    assert uids(api, "FineTuneJob", namespace) == {new["metadata"]["uid"]}


async def test_a_job_whose_deletion_waits_for_its_children_gets_no_new_ones(
    bench: Bench, api: Api, namespace: str, profile: str
) -> None:
    api.create(wish(namespace, compute={"profile": profile}))
    await settle(bench)
    path = f"/apis/finetune.dev/v1alpha1/namespaces/{namespace}/finetunejobs/wish"
    api.request("DELETE", path, {"propagationPolicy": "Foreground"})
    (batch,) = api.list("Job", namespace)
    assert batch["metadata"]["ownerReferences"][0]["blockOwnerDeletion"]
    api.delete("Job", namespace, "wish-prepare-1")
    before = bench.writes()
    await settle(bench)
    assert bench.writes() == before


def uids(api: Api, kind: str, namespace: str) -> set[str]:
    """uids of all objects of a kind."""
    return {found["metadata"]["uid"] for found in api.list(kind, namespace)}
