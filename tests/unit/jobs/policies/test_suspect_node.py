"""NaN and a full device are tried once more on another node before the job fails."""

import json

import pytest
from finetune_operator.decision import Manifest

from tests.unit.jobs.policies.test_node_exclusion import node_terms
from tests.unit.jobs.world import World, failed, job_manifest, recover, training

REMEDY = "Lower training.learningRate."
LOCATED = "The loss became nan at step 7 on host glossary-train-1-1 with learning rate 0.001."


def fail_all(world: World, pods: list[Manifest], attempt: int, reason: str, **failure: str) -> None:
    for pod in pods:
        message = failed("train", reason, attempt, remedy=REMEDY, **failure)
        world.end_pod(pod, 64, message)
    world.settle()


@pytest.mark.parametrize("reason", ["LossNotFinite", "OutOfMemory"])
def test_the_first_failure_counts_as_a_restart_on_another_node(reason: str) -> None:
    world, pods = training(World(job_manifest(maxRestarts=2)))
    fail_all(world, pods, 1, reason)
    status = world.status
    assert status["phase"] == "Queued"
    assert status["restarts"] == 1
    assert status["failure"]["reason"] == reason
    assert (status["suspected"]["attempt"], status["suspected"]["reason"]) == (1, reason)
    assert "once more on another node" in status["message"]
    assert "restart 1 of 2" in status["message"]
    recover(world, 10)
    assert "glossary-train-2" in world.names("Job")
    assert node_terms(world, "glossary-train-2") is not None


@pytest.mark.parametrize("second", ["LossNotFinite", "OutOfMemory"])
def test_the_second_failure_is_the_users_and_names_the_first(second: str) -> None:
    world, pods = training()
    fail_all(world, pods, 1, "LossNotFinite", message=LOCATED)
    recover(world, 10)
    fail_all(world, training(world, 2)[1], 2, second)
    status = world.status
    assert status["phase"] == "Failed"
    assert status["restarts"] == 1
    failure = status["failure"]
    assert (failure["reason"], failure["attempt"], failure["remedy"]) == (second, 2, REMEDY)
    expected = f"{second} it is; train attempt 1 ended with LossNotFinite on node2"
    assert failure["message"] == expected


def test_the_node_that_computed_nan_is_excluded_where_the_message_names_it() -> None:
    world, pods = training()
    fail_all(world, pods, 1, "LossNotFinite", message=LOCATED)
    assert world.status["nodes"] == [{"name": "node2", "failures": 1, "excluded": True}]
    assert world.status["suspected"]["nodes"] == ["node2"]
    event = next(event for event in world.events if event.reason == "NodeExcluded")
    assert event.message.startswith("1 attempt ended because of node node2")


def test_only_the_node_of_the_full_device_is_excluded() -> None:
    world, pods = training()
    world.end_pod(pods[1], 64, failed("train", "OutOfMemory"))
    world.settle()
    assert [node["name"] for node in world.status["nodes"]] == ["node2"]


def test_all_nodes_of_a_gang_are_excluded_where_no_rank_is_known() -> None:
    world, pods = training()
    fail_all(world, pods, 1, "LossNotFinite")
    assert [node["name"] for node in world.status["nodes"]] == ["node1", "node2"]


def test_the_same_nodes_are_used_again_where_there_are_no_others() -> None:
    world, pods = training()
    fail_all(world, pods, 1, "LossNotFinite")
    recover(world, 10)
    waiting = world.add_pods("glossary-train-2", "Pending")
    world.set_unschedulable(waiting[0], "0/2 nodes are available")
    world.settle()
    recover(world, 600)
    recover(world, 1)
    assert node_terms(world, "glossary-train-3") is None
    fail_all(world, training(world, 3)[1], 3, "LossNotFinite")
    assert world.status["phase"] == "Failed"


def test_without_restarts_the_first_failure_ends_the_job() -> None:
    world, pods = training(World(job_manifest(maxRestarts=0)))
    fail_all(world, pods, 1, "LossNotFinite")
    assert world.status["phase"] == "Failed"
    assert world.status["failure"]["remedy"] == REMEDY


def test_the_facts_of_a_failure_that_ends_the_job_stay_in_the_status() -> None:
    world, pods = training(World(job_manifest(maxRestarts=0)))
    result = json.loads(failed("train", "LossNotFinite"))
    facts = {"steps": 7, "worldSize": 2, "strategy": "DDP", "engine": "DistributedDataParallel"}
    world.end_pod(pods[0], 64, json.dumps({**result, "train": facts}))
    world.settle()
    assert world.status["phase"] == "Failed"
    assert world.status["training"]["steps"] == 7


@pytest.mark.parametrize(("nodes", "excluded"), [(16, 16), (17, 0)])
def test_of_many_nodes_none_is_excluded_where_no_rank_is_known(nodes: int, excluded: int) -> None:
    compute = {"profile": "cpu", "nodes": nodes, "strategy": "DDP"}
    training_spec = {"maxSteps": 30, "batchSize": nodes, "maxSequenceLength": 128}
    world, pods = training(World(job_manifest(compute=compute, training=training_spec)))
    fail_all(world, pods, 1, "LossNotFinite")
    status = world.status
    assert len(status.get("nodes", ())) == excluded
    assert status["suspected"]["attempt"] == 1
    assert ("no node is avoided, as any of more than 16" in status["message"]) is (excluded == 0)
    assert ("once more on another node" in status["message"]) is (excluded > 0)


def test_an_error_that_no_device_causes_is_not_tried_again() -> None:
    world, pods = training()
    fail_all(world, pods, 1, "LossDiverged")
    assert world.status["phase"] == "Failed"
    assert world.status["restarts"] == 0
    assert "suspected" not in world.status


def test_a_stage_without_devices_is_not_tried_again() -> None:
    world = World()
    world.run_until("prepare")
    (pod,) = world.add_pods("glossary-prepare-1")
    world.end_pod(pod, 64, failed("prepare", "OutOfMemory"))
    world.settle()
    assert world.status["phase"] == "Failed"


def test_a_suspended_job_keeps_what_it_suspects() -> None:
    world, pods = training()
    world.edit(suspend=True)
    fail_all(world, pods, 1, "LossNotFinite")
    recover(world, 10)
    assert world.status["phase"] == "Suspended"
    assert world.status["suspected"]["attempt"] == 1


def test_after_a_resume_any_node_may_be_used_and_is_suspected_again() -> None:
    world, pods = training()
    fail_all(world, pods, 1, "LossNotFinite")
    world.edit(suspend=True)
    world.settle()
    assert world.status["phase"] == "Suspended"
    world.edit(suspend=False)
    world.settle()
    assert "suspected" not in world.status
    assert node_terms(world, "glossary-train-2") is None
    fail_all(world, training(world, 2)[1], 2, "LossNotFinite")
    assert world.status["phase"] == "Queued"
    assert world.status["restarts"] == 2
    assert world.status["suspected"]["attempt"] == 2
