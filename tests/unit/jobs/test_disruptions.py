"""Evictions, preemptions and lost nodes: they are free, and no node is blamed wrongly."""

from collections.abc import Sequence

import pytest
from finetune_operator.decision import Manifest

from tests.unit.jobs.world import (
    World,
    failed,
    job_manifest,
    recover,
    result,
    training,
)


def test_preempted_gang_is_replaced_and_not_counted() -> None:
    world, pods = training()
    for pod in pods:
        world.end_pod(pod, 76, result("train", outcome="Preempted"))
    world.settle()
    recover(world, 1)
    assert world.stage("train")["attempt"] == 2
    assert world.status["restarts"] == 0
    assert world.status["failure"]["reason"] == "Preempted"


def test_lost_node_is_not_waited_for_and_not_counted() -> None:
    """Its pod stays Running and Terminating indefinitely; only the condition shows the loss."""
    world, pods = training()
    world.mark_disrupted(pods[1], "DeletionByTaintManager")
    world.mark_deleted(pods[1], 120)
    world.settle()
    recover(world, 1)
    assert "glossary-train-2" in world.names("Job")
    assert world.status["restarts"] == 0
    assert world.status["failure"]["reason"] == "DeletionByTaintManager"


def saves_in_its_grace(world: World, pods: Sequence[Manifest]) -> None:
    """The gang is deleted, saves within its grace period, and is replaced."""
    for pod in pods:
        world.mark_deleted(pod, 120)
    recover(world, 60)
    assert "glossary-train-1" in world.names("Job")
    assert world.status["message"].startswith("train is stopping; pod glossary-train-1-")
    for pod in pods:
        world.end_pod(pod, 76)
    world.settle()
    recover(world, 1)
    assert world.stage("train")["attempt"] == 2


def test_gang_on_a_reclaimed_node_gets_its_grace_and_no_node_is_blamed() -> None:
    """The same condition as on a lost node, but the pods are Ready: they are saving."""
    world, pods = training()
    world.set_status(pods[1], conditions=[{"type": "Ready", "status": "True"}])
    world.mark_disrupted(pods[1], "DeletionByTaintManager")
    saves_in_its_grace(world, pods)
    assert not world.status.get("nodes")


def test_no_node_is_blamed_for_a_pod_whose_image_is_pulled_on_a_reclaimed_node() -> None:
    world, pods = training()
    world.set_status(pods[1], phase="Pending")
    world.mark_disrupted(pods[1], "DeletionByTaintManager")
    world.mark_deleted(pods[1], 30)
    world.settle()
    recover(world, 60)
    recover(world, 1)
    assert world.stage("train")["attempt"] == 2
    assert world.status["restarts"] == 0
    assert not world.status.get("nodes")


@pytest.mark.parametrize("reason", ["Fenced", "AttemptAlreadyClaimed"])
def test_an_attempt_that_found_another_one_at_work_is_free(reason: str) -> None:
    """A Job that was deleted by hand while its creation was late comes back under its name."""
    world, pods = training()
    world.end_pod(pods[0], 75, failed("train", reason))
    world.settle()
    recover(world, 10)
    assert world.stage("train")["attempt"] == 2
    assert world.status["restarts"] == 0


def test_evicted_gang_gets_its_grace_to_save_before_it_is_replaced() -> None:
    world, pods = training()
    world.mark_disrupted(pods[0], "EvictionByEvictionAPI")
    saves_in_its_grace(world, pods)
    assert world.status["restarts"] == 0


def test_pod_that_exceeds_its_grace_period_is_given_up() -> None:
    world, pods = training()
    for pod in pods:
        world.mark_deleted(pod, 120)
    recover(world, 129)
    assert world.names("Job")[-1] == "glossary-train-1"
    recover(world, 2)
    recover(world, 2)
    assert world.names("Job")[-1] == "glossary-train-2"


@pytest.mark.parametrize("reason", ["Evicted", "NodeShutdown"])
def test_kubelet_that_ended_a_pod_without_a_condition_is_a_disruption(reason: str) -> None:
    world, pods = training()
    world.replace_status(pods[0], {"phase": "Failed", "reason": reason, "message": "low on disk"})
    world.settle()
    recover(world, 1)
    assert world.stage("train")["attempt"] == 2
    assert world.status["restarts"] == 0


def test_job_deleted_by_hand_is_replaced_and_not_counted() -> None:
    world, pods = training()
    for pod in pods:
        world.remove_pod(pod)
    world.remove("Job", "glossary-train-1")
    world.settle()
    recover(world, 15)
    assert world.stage("train")["attempt"] == 2
    assert world.status["restarts"] == 0
    assert world.status["failure"]["reason"] == "JobDeleted"


def test_a_job_that_was_only_not_seen_yet_is_not_replaced() -> None:
    world, pods = training()
    job = world.remove("Job", "glossary-train-1")
    for pod in pods:
        world.remove_pod(pod)
    world.settle()
    assert world.status["failure"]["reason"] == "JobDeleted"
    world.tick(10)
    world.settle()
    assert world.stage("train")["attempt"] == 1, "another replica may have just created it"
    world.load(job)
    world.settle()
    recover(world, 60)
    assert world.stage("train")["attempt"] == 1
    assert "failure" not in world.status


def test_pods_deleted_by_force_are_missed_once_the_job_has_ended() -> None:
    world, pods = training()
    for pod in pods:
        world.remove_pod(pod)
    world.settle()
    assert world.stage("train")["attempt"] == 1
    world.end_job("glossary-train-1", "Failed")
    world.settle()
    assert world.stage("train")["attempt"] == 1, "the cache may lag"
    recover(world, 6)
    recover(world, 1)
    assert world.stage("train")["attempt"] == 2
    assert world.status["restarts"] == 0


OWN_DOING = [
    "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ",
    'Container trainer exceeded its local ephemeral storage limit "1Gi". ',
    'Usage of EmptyDir volume "shm" exceeds the limit "1Gi". ',
]


@pytest.mark.parametrize("message", OWN_DOING)
@pytest.mark.parametrize("condition", [False, True])
def test_eviction_for_what_the_pod_used_itself_is_a_crash(message: str, condition: bool) -> None:
    world, pods = training()
    world.replace_status(pods[0], {"phase": "Failed", "reason": "Evicted", "message": message})
    if condition:
        world.mark_disrupted(pods[0], "TerminationByKubelet", message)
    world.settle()
    assert world.status["restarts"] == 1
    assert world.status["failure"]["reason"] == "Evicted"
    assert message.strip()[:30] in world.status["failure"]["message"]
    if "shm" in message:
        assert "sharedMemory" in world.status["failure"]["remedy"]


PRESSURE = (
    "The node was low on resource: memory. Threshold quantity: 100Mi, available: 90Mi. Container "
    "trainer was using 5Gi, request is 4Gi, has larger consumption of memory. "
)


def test_eviction_for_pressure_on_the_node_is_free() -> None:
    world, pods = training()
    world.replace_status(pods[0], {"phase": "Failed", "reason": "Evicted", "message": PRESSURE})
    world.settle()
    assert world.status["restarts"] == 0


def test_message_of_a_lost_node() -> None:
    world, pods = training()
    world.mark_disrupted(pods[1], "DeletionByTaintManager")
    world.mark_deleted(pods[1], 120)
    world.settle()
    assert world.status["message"] == "train lost a node, starts over"


@pytest.mark.parametrize("stage", ["prepare", "evaluate", "export"])
def test_a_dead_node_under_a_stage_of_one_pod_is_not_waited_for(stage: str) -> None:
    """Its pod remains indefinitely, next to the one of the next attempt."""
    world = World(job_manifest(serve=None))
    world.run_until(stage)
    (pod,) = world.add_pods(f"glossary-{stage}-1")
    world.settle()
    world.grace = 30
    world.mark_disrupted(pod, "DeletionByTaintManager")
    world.mark_deleted(pod, 30)
    world.settle()
    recover(world, 1)
    assert world.stage(stage)["attempt"] == 2
    recover(world, 600)
    world.add_pods(f"glossary-{stage}-2")
    world.settle()
    world.succeed(stage, 2)
    world.settle()
    assert world.stage(stage)["state"] == "Succeeded"
    assert len(world.pods(f"glossary-{stage}-1")) == 1


def test_the_message_names_what_a_deleted_pod_could_not_save() -> None:
    world, pods = training()
    for pod in pods:
        world.mark_deleted(pod, 120)
        world.end_pod(pod, 75, failed("train", "NoSpaceLeft", message="The volume is full."))
    world.settle()
    assert world.status["restarts"] == 0
    failure = world.status["failure"]
    assert failure["reason"] == "PodDeleted"
    assert failure["message"].endswith(
        "was deleted and could not save its work: The volume is full."
    )


@pytest.mark.parametrize("reason", ["Unknown", "ContainerStatusUnknown"])
def test_a_node_that_restarts_unnoticed_is_a_disruption(reason: str) -> None:
    world, pods = training()
    world.end_pod(pods[0], 255, reason=reason)
    world.settle()
    recover(world, 2)
    assert world.stage("train")["attempt"] == 2
    assert world.status["restarts"] == 0
    assert world.status["failure"]["reason"] == "NodeRestarted"
