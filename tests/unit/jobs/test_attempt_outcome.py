"""Which of many failed pods was the cause, and what counts as success."""

import json

import pytest

from tests.unit.jobs.world import (
    World,
    failed,
    recover,
    result,
    training,
)


def test_first_cause_decides_a_crash_whose_peers_were_asked_to_stop() -> None:
    world, pods = training()
    world.end_pod(pods[1], 137, reason="OOMKilled")
    world.tick(1)
    world.mark_deleted(pods[0], 120)
    world.tick(2)
    world.end_pod(pods[0], 76)
    world.settle()
    assert world.status["failure"]["reason"] == "OutOfHostMemory"
    assert "hostMemoryPerDevice" in world.status["failure"]["remedy"]
    assert world.status["restarts"] == 1


@pytest.mark.parametrize("clock", [-50, -2, 2, 50])
def test_the_first_cause_is_found_whatever_the_clocks_of_the_kubelets_say(clock: float) -> None:
    world, pods = training()
    world.end_pod(pods[1], 137, reason="OOMKilled", clock=clock)
    world.tick(1)
    world.end_job("glossary-train-1", "FailureTarget")
    world.mark_deleted(pods[0], 120)
    world.tick(2)
    world.end_pod(pods[0], 76, clock=-clock)
    world.settle()
    assert world.status["failure"]["reason"] == "OutOfHostMemory"
    assert world.status["restarts"] == 1


def test_a_deletion_in_the_second_in_which_the_job_failed_is_a_cause_where_there_is_no_other() -> (
    None
):
    world, pods = training()
    world.mark_deleted(pods[0], 120)
    world.end_pod(pods[0], 143)
    world.end_job("glossary-train-1", "FailureTarget")
    world.mark_deleted(pods[1], 120)
    world.tick(1)
    world.end_pod(pods[1], 143)
    world.settle()
    assert world.status["failure"]["reason"] == "PodDeleted"
    assert world.status["restarts"] == 0


def test_first_cause_decides_a_deleted_pod_whose_peers_then_crashed() -> None:
    world, pods = training()
    world.mark_deleted(pods[0], 120)
    world.tick(3)
    world.end_pod(pods[1], 1)
    world.tick(2)
    world.end_pod(pods[0], 143)
    world.settle()
    assert world.status["restarts"] == 0
    assert world.status["failure"]["reason"] == "PodDeleted"


def test_the_remedy_for_a_pod_without_devices_is_a_limit_that_is_in_no_profile() -> None:
    world = World()
    world.settle()
    (pod,) = world.add_pods("glossary-prepare-1")
    world.end_pod(pod, 137, reason="OOMKilled")
    world.settle()
    remedy = world.status["failure"]["remedy"]
    assert "cpuPods.limits.memory" in remedy
    assert "LimitRange" in remedy
    assert "AcceleratorProfile" not in remedy


PEER_LOST = failed("train", "PeerLost")


def test_rank_that_lost_its_peer_waits_for_the_peers_report() -> None:
    world, pods = training()
    world.end_pod(pods[0], 75, PEER_LOST)
    world.settle()
    assert world.status["restarts"] == 0
    assert world.status["message"] == "train is ending: 1 of 2 pods have ended"
    world.tick(1)
    world.end_pod(pods[1], 75, failed("train", "OutOfDeviceMemory"))
    world.settle()
    assert world.status["failure"]["reason"] == "OutOfDeviceMemory"
    assert world.status["restarts"] == 1


def test_peer_that_was_on_a_lost_node_is_a_disruption_although_it_shows_later() -> None:
    world, pods = training()
    world.end_pod(pods[0], 75, PEER_LOST)
    world.mark_deleted(pods[1], 120)
    world.settle()
    world.tick(12)
    world.mark_disrupted(pods[1], "DeletionByTaintManager")
    world.settle()
    recover(world, 1)
    assert world.status["restarts"] == 0
    assert world.status["failure"]["reason"] == "DeletionByTaintManager"


def test_peer_whose_report_was_deleted_with_its_pod_is_no_crash() -> None:
    """Its node was lost and came back: the pod was deleted, and is gone, between two reconciles."""
    world, pods = training()
    world.end_pod(pods[0], 75, PEER_LOST)
    world.remove_pod(pods[1])
    world.settle()
    recover(world, 40)
    assert world.stage("train")["attempt"] == 2
    assert world.status["restarts"] == 0


def test_lost_peer_that_never_reports_is_a_crash_after_half_a_minute() -> None:
    world, pods = training()
    world.end_pod(pods[0], 75, PEER_LOST)
    world.tick(1)
    world.mark_deleted(pods[1], 120)
    recover(world, 30)
    assert world.status["failure"]["reason"] == "PeerLost"
    assert world.status["restarts"] == 1


def test_crash_is_not_held_up_by_peers_that_hang() -> None:
    world, pods = training()
    world.end_pod(pods[1], 1)
    world.mark_deleted(pods[0], 120)
    world.settle()
    recover(world, 10)
    assert world.stage("train")["attempt"] == 2


def test_pod_that_the_kubelet_refused_is_tried_again() -> None:
    """It has no container status, so no time and no exit code."""
    world, pods = training()
    why = {"reason": "UnexpectedAdmissionError", "message": "no healthy devices present"}
    world.replace_status(pods[0], {"phase": "Failed", **why})
    world.settle()
    assert world.status["restarts"] == 1
    failure = world.status["failure"]
    assert failure["reason"] == "RefusedByNode"
    assert failure["message"].endswith(": UnexpectedAdmissionError: no healthy devices present")
    assert failure["remedy"] == "kubectl describe node node1"
    recover(world, 10)
    assert world.stage("train")["attempt"] == 2


def test_one_pod_of_two_is_no_success_although_job_and_run_json_are_gone() -> None:
    world, pods = training()
    world.succeed("train")
    world.remove_pod(pods[1])
    for kind in ("Job", "ConfigMap"):
        world.remove(kind, "glossary-train-1")
    world.settle()
    assert world.stage("train")["state"] == "Running"


def test_the_leaders_success_waits_for_the_rest_of_the_gang() -> None:
    world, pods = training()
    world.end_pod(pods[0], 0, result("train"))
    world.settle()
    assert world.stage("train")["state"] == "Running"
    assert "glossary-evaluate-1" not in world.names("Job")
    world.end_pod(pods[1], 1)
    world.settle()
    assert world.status["failure"]["reason"] == "Crashed"
    assert world.status["restarts"] == 1


@pytest.mark.parametrize("wrong", [{"outcome": "Failed"}, {"stage": "evaluate"}])
def test_an_exit_of_0_with_another_stages_result_is_no_success(wrong: dict[str, str]) -> None:
    world, pods = training()
    message = json.dumps({**json.loads(result("train")), **wrong})
    for pod in pods:
        world.end_pod(pod, 0, message)
    world.settle()
    assert world.status["failure"]["reason"] == "NoResult"
    assert world.stage("train")["state"] == "Running"


def test_only_the_trainers_container_decides_how_a_pod_ended() -> None:
    """A service mesh adds one, and the kubelet sorts them by name."""
    world, pods = training()
    proxy = {"name": "istio-proxy", "state": {"terminated": {"exitCode": 0, "message": ""}}}
    for pod in pods:
        world.end_pod(pod, 0, result("train"))
        [ours] = world.current(pod)["status"]["containerStatuses"]
        world.set_status(pod, containerStatuses=[proxy, ours])
    world.settle()
    assert world.stage("train")["state"] == "Succeeded"
