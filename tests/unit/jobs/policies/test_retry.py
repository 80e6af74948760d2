"""When an attempt that ended badly is tried again, and how often."""

from datetime import timedelta

import pytest

from tests.unit.jobs.world import (
    World,
    failed,
    job_manifest,
    recover,
    result,
    training,
)


def test_back_off_doubles_and_restarts_run_out() -> None:
    world = World(job_manifest(maxRestarts=3))
    world.run_until("train")
    for attempt, wait in ((1, 10), (2, 20), (3, 40)):
        pods = world.add_pods(f"glossary-train-{attempt}")
        world.settle()
        world.end_pod(pods[0], 75, failed("train", "OutOfDeviceMemory", attempt))
        world.settle()
        assert world.status["restarts"] == attempt
        assert world.decision.requeue_after == pytest.approx(wait)
        recover(world, wait)
    pods = world.add_pods("glossary-train-4")
    world.end_pod(pods[0], 75, failed("train", "OutOfDeviceMemory", 4))
    world.settle()
    status = world.status
    assert status["phase"] == "Failed"
    assert status["restarts"] == 3
    assert status["failure"]["reason"] == "OutOfDeviceMemory"
    assert status["failure"]["attempt"] == 4
    assert status["failure"]["message"].endswith("(after 3 restarts)")


def test_zero_max_restarts_means_no_restart() -> None:
    world, pods = training(World(job_manifest(maxRestarts=0)))
    world.end_pod(pods[0], 1)
    world.settle()
    assert world.status["phase"] == "Failed"


@pytest.mark.parametrize("off", [timedelta(days=3650), timedelta(days=-3650)])
def test_back_off_is_kept_on_a_node_whose_clock_is_years_off(off: timedelta) -> None:
    """The wait is neither endless nor skipped, and no stage ends in the future."""
    world, pods = training()
    world.tick(5)
    there = world.now
    world.now += off
    for pod in pods:
        world.end_pod(pod, 1)
    world.now = there
    world.settle()
    assert world.decision.requeue_after == pytest.approx(10)
    assert "glossary-train-2" not in world.names("Job")
    recover(world, 10)
    assert "glossary-train-2" in world.names("Job")


def test_an_eviction_by_a_kubelet_whose_clock_is_years_off_is_tried_again_at_once() -> None:
    world, pods = training()
    world.tick(60)
    there = world.now
    world.now += timedelta(days=3650)
    for pod in pods:
        world.mark_disrupted(pod, "TerminationByKubelet")
        world.end_pod(pod, 137)
    world.now = there
    world.settle()
    recover(world, 1)
    assert "glossary-train-2" in world.names("Job")


def preempt(world: World, attempt: int) -> None:
    """A gang runs for a second and is preempted."""
    _, pods = training(world, attempt)
    world.tick(1)
    for pod in pods:
        world.end_pod(pod, 76)
    world.settle()


def test_free_restarts_are_kept_apart_by_a_time_that_grows() -> None:
    world = World()
    waits = []
    for attempt in range(1, 12):
        preempt(world, attempt)
        waits.append(world.decision.requeue_after)
        recover(world, 300)
    assert waits == [1, 1, 3, 7, 15, 31, 63, 127, 255, 299, 299]
    assert world.status["restarts"] == 0


def test_an_attempt_longer_than_the_wait_is_followed_at_once() -> None:
    world = World()
    for attempt in range(1, 6):
        preempt(world, attempt)
        recover(world, 300)
    _, pods = training(world, 6)
    world.tick(3600)
    for pod in pods:
        world.end_pod(pod, 76)
    world.settle()
    assert world.decision.requeue_after == 1


def test_a_job_deleted_by_hand_again_and_again_does_not_spin() -> None:
    world, _ = training()
    for attempt in range(1, 6):
        for pod in world.pods(f"glossary-train-{attempt}"):
            world.remove_pod(pod)
        world.remove("Job", f"glossary-train-{attempt}")
        world.settle()
        wait = max(15, 2 ** (attempt - 1))
        assert world.decision.requeue_after == wait
        recover(world, wait)
    assert "glossary-train-6" in world.names("Job")


def test_a_restarted_operator_keeps_to_the_back_off() -> None:
    """The time of the next attempt is in the status, even when the failed Job is deleted."""
    world, pods = training()
    world.end_pod(pods[0], 1)
    world.settle()
    assert world.stage("train")["retryAt"] == "2026-01-05T12:00:30Z"
    world.remove("Job", "glossary-train-1")
    recover(world, 9)
    assert world.names("Job") == ["glossary-prepare-1"]
    recover(world, 1)
    assert "glossary-train-2" in world.names("Job")
    assert "retryAt" not in world.stage("train")


@pytest.mark.parametrize("first", [0, 1], ids=["leader first", "leader last"])
def test_message_names_the_step_of_a_preempted_job_and_where_it_resumes(first: int) -> None:
    world, pods = training()
    reported = {"step": 118, "totalSteps": 200, "etaSeconds": 300, "lastCheckpointStep": 100}
    world.report_progress(pods[0], **reported, checkpointSeconds=2.5)
    world.settle()
    facts = {"steps": 120, "worldSize": 2, "engine": "DDP"}
    results = (facts, None)
    for index in (first, 1 - first):
        world.end_pod(pods[index], 76, result("train", outcome="Preempted", train=results[index]))
        world.settle()
    message = "train was preempted at step 120, resumes from step 120"
    assert world.status["message"] == world.stage("train")["message"] == message
    assert world.status["checkpoint"] == {"step": 120, "seconds": 2.5}
    assert world.status["progress"]["step"] == 120
    assert "etaSeconds" not in world.status["progress"]
    recover(world, 1)
    message = "train is starting, attempt 2, resumes from step 120: 0 of 2 pods run"
    assert world.status["message"] == message


def test_a_checkpoint_that_the_next_attempt_could_not_read_is_not_claimed_any_longer() -> None:
    world, pods = training()
    world.report_progress(pods[0], step=118, totalSteps=200, lastCheckpointStep=100)
    world.settle()
    world.end_pod(pods[1], 1)
    recover(world, 30)
    pods = world.add_pods("glossary-train-2")
    world.report_progress(pods[0], message="searching for a checkpoint")
    world.settle()
    assert world.status["checkpoint"]["step"] == 100
    world.report_progress(pods[0], step=0, totalSteps=200, lastCheckpointStep=0)
    world.settle()
    assert "checkpoint" not in world.status
    assert "lastCheckpointStep" not in world.status["progress"]


def test_message_counts_crashes_and_names_what_is_lost() -> None:
    world, pods = training()
    world.report_progress(pods[0], step=118, totalSteps=200, lastCheckpointStep=100)
    world.settle()
    world.end_pod(pods[1], 1)
    world.settle()
    name = pods[1]["metadata"]["name"]
    assert world.status["message"] == (
        f"train attempt 1 ended at step 118: pod {name} ended with exit code 1 and left no result; "
        "restart 1 of 3; resumes from step 100"
    )


@pytest.mark.parametrize(("most", "phase"), [(0, "Failed"), (1, "Failed"), (5, "Queued")])
def test_restarts_allowed_are_those_of_the_moment_of_the_crash(most: int, phase: str) -> None:
    world, pods = training(World(job_manifest(maxRestarts=1)))
    world.end_pod(pods[0], 1)
    world.settle()
    recover(world, 10)
    _, pods = training(world, 2)
    world.edit(maxRestarts=most)
    world.settle()
    assert world.status["phase"] == "Training", "what was counted already is no crash"
    world.end_pod(pods[0], 1)
    world.settle()
    assert world.status["phase"] == phase


def test_no_crash_is_waited_after_for_longer_than_five_minutes() -> None:
    world, pods = training(World(job_manifest(maxRestarts=100)))
    world.load({**world.job, "status": {**world.status, "restarts": 40}})
    world.end_pod(pods[0], 1)
    world.settle()
    assert world.status["restarts"] == 41
    recover(world, 301)
    recover(world, 1)
    assert world.names("Job")[-1] == "glossary-train-2"
