"""The operator's own controllers on the real API server: its schema, its rules, its deletions.

What the unit tests of jobs take for granted: that a status of every kind is admitted, that the
write that starts a job freezes its spec, and that a job is deleted only by its own uid.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from finetune_operator.controllers import build_controllers
from finetune_operator.decision import Settings

from tests.api.client import Api, ApiError, Manifest
from tests.api.engine import toy
from tests.api.engine.conftest import Bench

RECONCILE = build_controllers(Settings(trainer_image="trainer", serving_image="vllm")).reconcile[
    "FineTuneJob"
]
ELSEWHERE = {"uri": "pvc://finetune-workspace/jobs/of-another-job"}


@pytest.fixture
def profile(api: Api) -> Iterator[str]:
    """An AcceleratorProfile for the test."""
    name = f"pool-{uuid.uuid4().hex[:8]}"
    kind = {"apiVersion": "finetune.dev/v1alpha1", "kind": "AcceleratorProfile"}
    api.create({**kind, "metadata": {"name": name}, "spec": {"memoryPerDevice": "8Gi"}})
    yield name
    api.delete("AcceleratorProfile", "", name)


def job_with(namespace: str, **spec: Any) -> Manifest:
    manifest = toy.finetune_job(namespace, "job")
    return {**manifest, "spec": {**manifest["spec"], **spec}}


async def settle(bench: Bench) -> None:
    """Reconcile until nothing is written any more."""
    await bench.list()
    before: dict[str, float] | None = None
    while before != (before := bench.writes()):
        await bench.reconcile(RECONCILE, "job")


async def test_the_spec_of_a_suspended_job_may_be_edited_until_it_is_resumed(
    bench: Bench, api: Api, namespace: str, profile: str
) -> None:
    api.create(job_with(namespace, suspend=True, compute={"profile": profile}))
    await settle(bench)
    status = api.get("FineTuneJob", namespace, "job")["status"]
    assert (status["phase"], status["message"]) == ("Suspended", "suspended before prepare")
    assert api.list("Job", namespace) == []

    edit = {"spec": {"training": {"epochs": 5}, "suspend": False}}
    api.patch("FineTuneJob", namespace, "job", edit)
    await settle(bench)
    assert api.get("FineTuneJob", namespace, "job")["status"]["startedAt"]
    (batch,) = api.list("Job", namespace)
    with pytest.raises(ApiError, match="training cannot change after the job has started"):
        api.patch("FineTuneJob", namespace, "job", {"spec": {"training": {"epochs": 6}}})

    api.patch("FineTuneJob", namespace, "job", {"spec": {"suspend": True}})
    await settle(bench)
    assert api.get("FineTuneJob", namespace, "job")["status"]["phase"] == "Suspended"
    assert batch["metadata"]["uid"] not in uids(api, "Job", namespace)

    api.patch("FineTuneJob", namespace, "job", {"spec": {"suspend": False}})
    await settle(bench)
    assert [job["metadata"]["name"] for job in api.list("Job", namespace)] == ["job-prepare-2"]


async def test_a_job_is_deleted_when_its_time_to_live_is_over(
    bench: Bench, api: Api, namespace: str, profile: str
) -> None:
    """Also when the user sets it after the end. The job fails before any pod starts."""
    api.create(job_with(namespace, model=ELSEWHERE, compute={"profile": profile}))
    await settle(bench)
    ended = api.get("FineTuneJob", namespace, "job")["status"]
    assert (ended["phase"], ended["failure"]["reason"]) == ("Failed", "NotAnArtifact")

    api.patch("FineTuneJob", namespace, "job", {"spec": {"ttlSecondsAfterFinished": 3600}})
    await settle(bench)
    assert api.get("FineTuneJob", namespace, "job")["status"]["observedGeneration"] == 2

    api.patch("FineTuneJob", namespace, "job", {"spec": {"ttlSecondsAfterFinished": 0}})
    await settle(bench)
    assert api.list("FineTuneJob", namespace) == []


async def test_a_new_job_of_the_same_name_is_not_deleted_for_the_old_one(
    bench: Bench, api: Api, namespace: str, profile: str
) -> None:
    spec = {"model": ELSEWHERE, "compute": {"profile": profile}, "ttlSecondsAfterFinished": 0}
    api.create(job_with(namespace, **spec))
    await bench.list()
    await bench.reconcile(RECONCILE, "job")
    api.delete("FineTuneJob", namespace, "job")
    new = api.create(job_with(namespace, **spec))
    await bench.reconcile(RECONCILE, "job")
    assert uids(api, "FineTuneJob", namespace) == {new["metadata"]["uid"]}


async def test_a_job_whose_deletion_waits_for_its_children_gets_no_new_children(
    bench: Bench, api: Api, namespace: str, profile: str
) -> None:
    api.create(job_with(namespace, compute={"profile": profile}))
    await settle(bench)
    path = f"/apis/finetune.dev/v1alpha1/namespaces/{namespace}/finetunejobs/job"
    api.request("DELETE", path, {"propagationPolicy": "Foreground"})
    (batch,) = api.list("Job", namespace)
    assert batch["metadata"]["ownerReferences"][0]["blockOwnerDeletion"]
    api.delete("Job", namespace, "job-prepare-1")
    before = bench.writes()
    await settle(bench)
    assert bench.writes() == before


def uids(api: Api, kind: str, namespace: str) -> set[str]:
    return {found["metadata"]["uid"] for found in api.list(kind, namespace)}
