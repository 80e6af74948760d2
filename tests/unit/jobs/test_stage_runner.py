"""What follows a failed attempt."""

import json
from dataclasses import replace

import pytest
from finetune_api.acceleratorprofile import CpuPods
from finetune_operator.resources.configmap import RUN_FILE

from tests.unit.jobs.world import (
    NAMESPACE,
    World,
    failed,
    job_manifest,
    recover,
    result,
    training,
)


def test_error_of_the_user_ends_the_job_with_place_and_remedy() -> None:
    world = World()
    world.settle()
    (pod,) = world.add_pods("glossary-prepare-1")
    text = failed("prepare", "BrokenRow", file="foldoc.jsonl", line=17, remedy="fix the row")
    world.end_pod(pod, 64, text)
    world.settle()
    status = world.status
    assert status["phase"] == "Failed"
    assert status["failure"] == {
        "stage": "prepare",
        "attempt": 1,
        "reason": "BrokenRow",
        "message": "BrokenRow it is",
        "file": "foldoc.jsonl",
        "line": 17,
        "remedy": "fix the row",
    }
    assert status["message"] == "prepare: BrokenRow it is (fix the row)"
    assert world.condition("Succeeded")["status"] == "False"
    assert world.condition("Succeeded")["reason"] == "BrokenRow"
    assert world.condition("Reconciling")["status"] == "False"
    assert world.condition("Prepared")["reason"] == "BrokenRow"
    assert world.stage("prepare")["state"] == "Failed"
    assert ("Warning", "BrokenRow") in [(e.type, e.reason) for e in world.events]
    assert world.names("Job") == ["glossary-prepare-1"]
    assert world.status["restarts"] == 0


def test_error_of_the_user_on_any_rank_ends_the_job() -> None:
    world, pods = training()
    world.mark_disrupted(pods[0], "EvictionByEvictionAPI")
    world.end_pod(pods[0], 76)
    world.end_pod(pods[1], 64, failed("train", "BrokenTokenizer"))
    world.settle()
    assert world.status["failure"]["reason"] == "BrokenTokenizer"
    assert world.status["phase"] == "Failed"


def test_crash_is_tried_again_after_ten_seconds_after_the_old_job_is_gone() -> None:
    world, pods = training()
    world.end_pod(pods[1], 1)
    world.settle()
    assert world.status["phase"] == "Queued"
    assert world.status["restarts"] == 1
    assert world.status["failure"]["reason"] == "Crashed"
    assert world.status["failure"]["attempt"] == 1
    assert world.decision.requeue_after == pytest.approx(10)
    recover(world, 9)
    assert "glossary-train-1" in world.names("Job")
    world.tick(1)
    first = world.reconcile()
    assert [ref.name for ref in first.delete] == ["glossary-train-1"]
    assert not first.create
    second = world.reconcile()
    assert {m["metadata"]["name"] for m in second.create} == {"glossary-train-2"}
    world.settle()
    assert world.stage("train")["attempt"] == 2
    assert world.status["failure"]["attempt"] == 1


def test_typed_failure_is_kept_until_the_stage_succeeds() -> None:
    world, pods = training()
    world.end_pod(pods[0], 75, failed("train", "CheckpointNotWritten"))
    world.settle()
    assert world.status["failure"]["reason"] == "CheckpointNotWritten"
    assert ("Warning", "CheckpointNotWritten") in [(e.type, e.reason) for e in world.events]
    recover(world, 10)
    world.add_pods("glossary-train-2")
    world.settle()
    assert world.status["failure"]["reason"] == "CheckpointNotWritten"
    world.succeed("train", 2)
    world.settle()
    assert "failure" not in world.status
    assert world.status["restarts"] == 1


def test_failed_attempt_stays_failed_when_its_pods_are_deleted() -> None:
    world, pods = training()
    world.end_pod(pods[0], 1)
    world.settle()
    for pod in pods:
        world.remove_pod(pod)
    recover(world, 11)
    assert world.stage("train")["attempt"] == 2
    assert world.status["restarts"] == 1


def test_an_attempt_missing_from_the_cache_is_created_again_under_the_same_name() -> None:
    world = World()
    world.reconcile()
    for name in world.names("Job"):
        world.remove("Job", name)
    again = world.reconcile()
    assert [m["kind"] for m in again.create] == ["Job"]
    assert again.create[0]["metadata"]["name"] == "glossary-prepare-1"


def test_failure_recorded_before_a_crash_of_the_operator_is_not_counted_twice() -> None:
    world, pods = training()
    world.end_pod(pods[0], 1)
    world.reconcile()
    assert world.status["restarts"] == 1
    for _ in range(3):
        world.tick(1)
        world.reconcile()
    assert world.status["restarts"] == 1


def test_retry_gets_the_same_bytes_but_for_attempt_and_host() -> None:
    world, pods = training()
    world.patch(world.job, {"spec": {"training": {"maxSteps": 31}}})
    world.add_profile("cpu", {"devicesPerNode": 2, "memoryPerDevice": "2Gi", "cpuPerDevice": "2"})
    world.end_pod(pods[0], 1)
    world.settle()
    recover(world, 10)
    first, second = (_run_config(world, f"glossary-train-{n}") for n in (1, 2))
    assert (first.pop("attempt"), second.pop("attempt")) == (1, 2)
    assert first.pop("masterHost") == "glossary-train-1-0.glossary-train-1"
    assert second.pop("masterHost") == "glossary-train-2-0.glossary-train-2"
    assert first == second


def _run_config(world: World, name: str) -> dict[str, object]:
    found = world.get("ConfigMap", NAMESPACE, name)
    assert found is not None
    assert found["immutable"]
    return dict(json.loads(found["data"][RUN_FILE]))


def test_jobs_of_older_attempts_are_removed_when_seen() -> None:
    world, pods = training()
    old = world.need("Job", "glossary-train-1")
    world.end_pod(pods[0], 1)
    world.settle()
    recover(world, 10)
    world.load(old)
    assert [ref.uid for ref in world.reconcile().delete] == [old["metadata"]["uid"]]


def test_configmap_and_service_lost_while_it_waits_are_created_again() -> None:
    world = World()
    world.run_until("train")
    world.add_pods("glossary-train-1", "Pending")
    for kind in ("ConfigMap", "Service"):
        world.remove(kind, "glossary-train-1")
    world.settle()
    assert "glossary-train-1" in world.names("ConfigMap")
    assert "glossary-train-1" in world.names("Service")
    assert world.stage("train")["attempt"] == 1


@pytest.mark.parametrize(
    ("kind", "name"),
    [("Service", "glossary-train-1"), ("PersistentVolumeClaim", "finetune-workspace")],
)
def test_what_pods_wait_for_is_created_again_after_a_user_deleted_it(kind: str, name: str) -> None:
    world = World()
    world.run_until("train")
    world.add_pods("glossary-train-1", "Pending")
    world.remove(kind, name)
    world.settle()
    assert name in world.names(kind)


def test_name_held_by_the_remains_of_an_earlier_job_is_waited_for() -> None:
    world = World()
    meta = {
        "name": "glossary-prepare-1",
        "namespace": NAMESPACE,
        "uid": "old",
        "ownerReferences": [{"uid": "another-job"}],
    }
    world.load({"kind": "ConfigMap", "metadata": meta})
    world.settle()
    assert world.condition("Stalled")["reason"] == "NameTaken"
    assert world.names("Job") == []
    world.remove("ConfigMap", "glossary-prepare-1")
    world.settle()
    assert world.names("Job") == ["glossary-prepare-1"]
    assert world.condition("Stalled")["status"] == "False"


def test_a_workspace_that_is_too_small_fails_the_job_before_it_requests_a_device() -> None:
    world = World()
    world.settle()
    (pod,) = world.add_pods("glossary-prepare-1")
    facts = {"freeBytes": 10**6, "writeBytesPerSecond": 1e8}
    world.end_pod(pod, 0, result("prepare", workspace=facts))
    world.settle()
    assert world.status["phase"] == "Failed"
    assert world.status["failure"]["reason"] == "WorkspaceTooSmall"
    assert "enlarge claim finetune-workspace" in world.status["message"]
    assert world.names("Job") == ["glossary-prepare-1"]


def test_an_export_that_fits_nowhere_fails_the_job_before_it_requests_a_device() -> None:
    world = World()
    world.settings = replace(world.settings, cpu_pods=CpuPods(max_memory="1Gi"))
    world.settle()
    (pod,) = world.add_pods("glossary-prepare-1")
    world.end_pod(pod, 0, result("prepare"))
    world.settle()
    failure = world.status["failure"]
    assert (failure["stage"], failure["reason"]) == ("export", "DoesNotFit")
    assert "raise cpuPods.maxMemory" in world.status["message"]
    assert world.names("Job") == ["glossary-prepare-1"]


def test_the_status_records_the_start_in_the_write_before_anything_is_created() -> None:
    world = World()
    decision = world.reconcile()
    assert decision.status is not None
    assert decision.status["startedAt"] == "2026-01-05T12:00:00Z"
    assert decision.create


def test_a_job_that_waits_for_a_profile_has_not_begun() -> None:
    world = World(job_manifest(compute={"profile": "h100"}))
    world.settle()
    assert world.condition("Stalled")["status"] == "True"
    assert "startedAt" not in world.status
