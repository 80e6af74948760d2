"""A gang whose last node is missing waits, gives its devices back, and counts no restart."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.jobs.world import World, failed, recover, training

TEXT = "0/9 nodes are available: 9 Insufficient nvidia.com/gpu."
PATIENCE = 600


def half_scheduled(world: World | None = None, attempt: int = 1) -> tuple[World, list[Any]]:
    """Pod 0 of a gang of two runs, and the scheduler finds no node for pod 1."""
    world = world or World()
    if attempt == 1:
        world.run_until("train")
    pods = list(world.add_pods(f"glossary-train-{attempt}"))
    world.set_unschedulable(pods[1], TEXT)
    world.settle()
    return world, pods


def overall(world: World) -> tuple[str, str]:
    return world.condition("Reconciling")["status"], world.condition("Stalled")["status"]


def test_a_scale_up_is_no_stall_and_its_message_is_the_schedulers() -> None:
    world, pods = half_scheduled()
    world.tick(PATIENCE - 1)
    world.settle()
    assert overall(world) == ("True", "False")
    assert world.condition("Reconciling")["reason"] == "Unschedulable"
    assert TEXT in world.status["message"]
    assert not [event for event in world.events if event.type == "Warning"]
    world.schedule(pods[1], "node2")
    world.settle()
    assert world.status["phase"] == "Training"
    assert world.stage("train")["attempt"] == 1


def test_devices_are_given_back_and_no_restart_is_counted() -> None:
    world, _ = half_scheduled()
    world.tick(PATIENCE)
    world.settle()
    failure = world.status["failure"]
    assert failure["reason"] == "GangUnschedulable"
    assert TEXT in failure["message"]
    assert "1 of 2 pods" in failure["message"]
    assert world.status["restarts"] == 0
    assert world.status["phase"] == "Queued"
    assert "glossary-train-1" not in world.names("Job"), "given back now, not after the delay"
    assert world.pods("glossary-train-1") == []
    recover(world, 300)
    assert world.names("Job")[-1] == "glossary-train-2"
    assert world.pods("glossary-train-1") == []


def test_it_waits_indefinitely_and_then_trains() -> None:
    world, _ = half_scheduled()
    for attempt in range(1, 9):
        world.tick(PATIENCE)
        world.settle()
        assert world.stage("train")["attempt"] == attempt
        recover(world, 301)
        half_scheduled(world, attempt + 1)
        world.tick(11)
        world.settle()
        # The patience for a scale-up has passed with the first attempt.
        assert overall(world) == ("False", "True")
    pods = world.pods("glossary-train-9")
    world.schedule(pods[1], "node2")
    world.settle()
    assert world.status["phase"] == "Training"
    assert world.status["restarts"] == 0


def test_a_gang_that_holds_no_node_keeps_its_place() -> None:
    world = World()
    world.run_until("train")
    for pod in world.add_pods("glossary-train-1", "Pending"):
        world.set_unschedulable(pod, TEXT)
    world.settle()
    world.tick(10 * PATIENCE)
    world.settle()
    assert world.stage("train")["attempt"] == 1
    assert overall(world) == ("False", "True")
    assert world.condition("Stalled")["reason"] == "Unschedulable"


def test_a_gang_of_which_a_quota_refuses_a_pod_gives_its_devices_back() -> None:
    world = World()
    world.run_until("train")
    pods = world.add_pods("glossary-train-1")
    world.remove_pod(pods[1])
    refusal = 'pods "glossary-train-1-…" is forbidden: exceeded quota: team'
    world.refuse_pods("glossary-train-1", f"Error creating: {refusal.replace('…', '1-x2bq7')}")
    world.tick(PATIENCE - 1)
    world.settle()
    world.tick(1)
    world.settle()
    assert world.status["failure"]["reason"] == "GangUnschedulable"
    assert world.status["failure"]["message"].endswith(f"refuses the others: {refusal}")


def test_two_gangs_that_hold_each_other_try_again_at_different_times() -> None:
    delays = set()
    for number in range(8):
        world, _ = half_scheduled()
        job = world.need("Job", "glossary-train-1")
        job["metadata"]["uid"] = f"{number}" * 8
        world.load(job)
        world.tick(PATIENCE)
        world.settle()
        delays.add(world.stage("train")["retryAt"])
    assert len(delays) > 5


def test_the_time_in_the_queue_of_another_controller_does_not_count() -> None:
    """Kueue holds a Job back; its pods are created one after the other when it is admitted."""
    world = World()
    world.run_until("train")
    world.replace_fields(world.need("Job", "glossary-train-1"), {"suspend": True})
    world.settle()
    world.tick(10 * PATIENCE)
    world.settle()
    job = world.need("Job", "glossary-train-1")
    world.replace_fields(job, {"suspend": False})
    world.replace_status(job, {"startTime": world.time()})
    pods = world.add_pods("glossary-train-1")
    world.remove_pod(pods[1])
    world.settle()
    assert "failure" not in world.status
    assert overall(world) == ("True", "False")
    world.tick(PATIENCE)
    world.settle()
    assert world.status["failure"]["reason"] == "GangUnschedulable"


def test_a_gang_that_is_ending_is_not_one_that_waits() -> None:
    """A node is removed with its pod, and the Job controller ends the other one, which saves."""
    world, pods = training()
    world.tick(10 * PATIENCE)
    world.mark_deleted(pods[0], 120)
    world.remove_pod(pods[1])
    world.settle()
    assert "failure" not in world.status
    world.end_pod(pods[0], 76)
    world.settle()
    assert world.status["failure"]["reason"] == "Preempted"


@pytest.mark.parametrize("reason", ["RendezvousFailed", "RendezvousTimeout"])
@pytest.mark.parametrize("peer", ["unscheduled", "image"])
def test_ranks_that_give_up_on_a_pod_that_never_ran_cost_no_restart(reason: str, peer: str) -> None:
    world, pods = half_scheduled()
    if peer == "image":
        world.set_waiting(pods[1], "ImagePullBackOff", "no such host")
    world.end_pod(pods[0], 75, failed("train", reason))
    world.settle()
    assert world.status["restarts"] == 0
    assert world.status["failure"]["reason"] == reason
    assert pods[1]["metadata"]["name"] in world.status["failure"]["message"]


@pytest.mark.parametrize("reason", ["RendezvousFailed", "RendezvousTimeout"])
def test_ranks_that_give_up_on_a_pod_that_does_not_exist_cost_no_restart(reason: str) -> None:
    """A quota refuses it, or the Job controller has deleted it since, as it had not started."""
    world, pods = half_scheduled()
    world.remove_pod(pods[1])
    world.end_pod(pods[0], 75, failed("train", reason))
    world.settle()
    assert world.status["restarts"] == 0
    assert world.status["failure"]["reason"] == reason
    assert "1 of 2 pods" in world.status["failure"]["message"]


def test_ranks_that_all_ran_and_found_no_peer_cost_a_restart() -> None:
    world = World()
    world.run_until("train")
    pods = world.add_pods("glossary-train-1")
    world.settle()
    world.end_pod(pods[0], 75, failed("train", "RendezvousFailed"))
    world.settle()
    assert world.status["restarts"] == 1


def test_ranks_wait_longer_than_the_operator() -> None:
    world, _ = half_scheduled()
    env = {each["name"]: each["value"] for each in world.container("train")["env"]}
    assert float(env["FINETUNE_RENDEZVOUS_TIMEOUT"]) > PATIENCE


def test_the_next_attempt_waits_until_the_pods_of_the_last_one_are_gone() -> None:
    """A slow garbage collector leaves them for a while, and the one that waits may get a node."""
    world, pods = half_scheduled()
    world.grace = 600
    world.tick(PATIENCE)
    world.settle()
    recover(world, 301)
    assert world.names("Job") == ["glossary-prepare-1"]
    world.remove_pod(pods[0])
    recover(world, 1)
    assert "glossary-train-2" in world.names("Job")
