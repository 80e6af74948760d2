"""A stage has ended when its own container has, whatever else runs in the pod."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.decision import Manifest

from tests.unit.jobs.world import World, failed, job_manifest, recover, result, training


def end_trainer(world: World, pod: Manifest, code: int, message: str, is_first: bool) -> None:
    """The trainer's container ends; a proxy of a service mesh runs on, and so does the pod."""
    terminated = {"exitCode": code, "message": message, "finishedAt": world.time()}
    trainer: dict[str, Any] = {"name": "trainer", "state": {"terminated": terminated}}
    proxy: dict[str, Any] = {"name": "istio-proxy", "state": {"running": {}}}
    statuses = [trainer, proxy] if is_first else [proxy, trainer]
    world.set_status(pod, phase="Running", containerStatuses=statuses)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_stage_succeeds_and_the_rest_of_its_pods_is_ended(is_first: bool) -> None:
    world, pods = training()
    for pod in pods:
        end_trainer(world, pod, 0, result("train"), is_first)
    decision = world.reconcile()
    assert world.stage("train")["state"] == "Succeeded"
    assert decision.delete == (), "nothing is deleted before the status records the end"
    world.settle()
    assert "glossary-train-1" not in world.names("Job")
    assert world.pods("glossary-train-1") == []
    assert "glossary-evaluate-1" in world.names("Job")


def test_a_rank_that_failed_next_to_a_proxy_counts_as_failed() -> None:
    world, pods = training()
    end_trainer(world, pods[0], 75, failed("train", "RankFailed"), False)
    world.settle()
    assert world.status["restarts"] == 1
    assert world.status["failure"]["reason"] == "RankFailed"
    recover(world, 10)
    assert "glossary-train-2" in world.names("Job")
    assert world.pods("glossary-train-1") == []


def test_an_error_of_the_user_ends_the_job_and_its_pods() -> None:
    world = World()
    world.settle()
    (pod,) = world.add_pods("glossary-prepare-1")
    end_trainer(world, pod, 64, failed("prepare", "BrokenRow"), False)
    world.settle()
    assert world.status["phase"] == "Failed"
    world.settle()
    assert world.pods("glossary-prepare-1") == []


def test_a_sidecar_that_ended_first_is_not_the_trainer() -> None:
    world, pods = training()
    proxy = {"name": "vault-agent", "state": {"terminated": {"exitCode": 1}}}
    trainer: dict[str, Any] = {"name": "trainer", "state": {"running": {}}}
    world.set_status(pods[0], phase="Running", containerStatuses=[proxy, trainer])
    world.settle()
    assert world.status["phase"] == "Training"
    assert world.status["restarts"] == 0


def test_the_last_stage_of_a_job_leaves_no_sidecar_either() -> None:
    world = World(job_manifest(serve=None))
    world.run_until("export")
    (pod,) = world.add_pods("glossary-export-1")
    end_trainer(world, pod, 0, result("export"), False)
    world.settle()
    assert world.status["phase"] == "Succeeded"
    assert world.pods("glossary-export-1") == []


def test_a_suspended_job_leaves_no_sidecar_of_a_stage_that_succeeded() -> None:
    world, pods = training()
    for pod in pods:
        end_trainer(world, pod, 0, result("train"), False)
    world.edit(suspend=True)
    world.settle()
    assert world.status["phase"] == "Suspended"
    assert world.pods("glossary-train-1") == []


NATIVE: dict[str, Any] = {
    "initContainerStatuses": [{"name": "istio-proxy", "state": {"running": {}}}]
}


@pytest.mark.parametrize("others", [{}, NATIVE], ids=["alone", "native sidecar"])
def test_a_stage_waits_for_the_final_phase_where_the_kubelet_will_report_it(
    others: dict[str, Any],
) -> None:
    """Between the end of the last container and the final phase a pod still counts as Running."""
    world, pods = training()
    for pod in pods:
        terminated = {"exitCode": 0, "message": result("train"), "finishedAt": world.time()}
        statuses = [{"name": "trainer", "state": {"terminated": terminated}}]
        world.set_status(pod, phase="Running", containerStatuses=statuses, **others)
    world.settle()
    assert world.stage("train")["state"] == "Running"
    world.succeed("train")
    world.settle()
    assert world.stage("train")["state"] == "Succeeded"
    assert "glossary-train-1" in world.names("Job"), "its Job stays for the logs"
    assert len(world.pods("glossary-train-1")) == 2


@pytest.mark.parametrize("reason", ["Evicted", "NodeShutdown"])
def test_a_pod_that_the_kubelet_evicts_is_no_crash_before_its_final_phase(reason: str) -> None:
    """The kubelet adds the reason and DisruptionTarget together with the phase."""
    world, pods = training()
    terminated = {"exitCode": 137, "reason": "Error", "finishedAt": world.time()}
    statuses = [{"name": "trainer", "state": {"terminated": terminated}}]
    world.set_status(pods[0], phase="Running", containerStatuses=statuses)
    world.settle()
    world.set_status(pods[0], phase="Failed", reason=reason)
    world.settle()
    assert world.status["restarts"] == 0
    assert world.status["failure"]["reason"] == reason


def test_a_sidecar_whose_image_is_missing_does_not_keep_a_stage_from_ending() -> None:
    """The kubelet then reports Pending indefinitely."""
    world = World()
    world.settle()
    (pod,) = world.add_pods("glossary-prepare-1")
    terminated = {"exitCode": 0, "message": result("prepare"), "finishedAt": world.time()}
    trainer: dict[str, Any] = {"name": "trainer", "state": {"terminated": terminated}}
    agent: dict[str, Any] = {"name": "agent", "state": {"waiting": {"reason": "ErrImagePull"}}}
    world.set_status(pod, phase="Pending", containerStatuses=[agent, trainer])
    world.settle()
    assert world.stage("prepare")["state"] == "Succeeded"
    assert world.pods("glossary-prepare-1") == []


def test_a_container_that_the_kubelet_lost_track_of_with_a_proxy_is_no_crash() -> None:
    world, pods = training()
    terminated = {"exitCode": 137, "reason": "ContainerStatusUnknown"}
    trainer: dict[str, Any] = {"name": "trainer", "state": {"terminated": terminated}}
    proxy: dict[str, Any] = {"name": "istio-proxy", "state": {"running": {}}}
    world.set_status(pods[0], phase="Running", containerStatuses=[trainer, proxy])
    world.settle()
    assert world.status["restarts"] == 0
    assert world.status["failure"]["reason"] == "NodeRestarted"
