"""A rank that gives no sign of life: shown at once, replaced after 20 minutes."""

import pytest
from finetune_operator.decision import Manifest

from tests.unit.jobs.world import CPU_PROFILE, World, job_manifest, recover, training

SILENT = [{"rank": 1, "host": "glossary-train-1-1", "step": 12, "updatedAt": 0}]


def report(world: World, pod: Manifest, stalled: object = SILENT) -> None:
    world.report_progress(pod, step=12, totalSteps=30, message="training", stalled=stalled)
    world.settle()


def test_a_silent_rank_is_named_in_the_message() -> None:
    world, pods = training()
    report(world, pods[0])
    message = "no sign of life from rank 1 on host glossary-train-1-1 after step 12"
    assert world.status["message"] == message
    assert world.status["progress"]["stalledSince"] == "2026-01-05T12:00:20Z"


def test_a_silent_rank_is_replaced_after_the_timeout_as_a_crash_of_its_node() -> None:
    world, pods = training()
    report(world, pods[0])
    world.tick(1199)
    report(world, pods[0])
    assert world.status["restarts"] == 0
    world.tick(1)
    report(world, pods[0])
    status = world.status
    assert status["restarts"] == 1
    assert status["failure"]["reason"] == "RankStalled"
    assert "rank 1 on host glossary-train-1-1" in status["failure"]["message"]
    assert status["nodes"] == [{"name": "node2", "failures": 1, "excluded": False}]
    assert "stalledSince" not in status["progress"]
    recover(world, 10)
    assert "glossary-train-2" in world.names("Job")
    assert "glossary-train-1" not in world.names("Job")


def test_a_long_collective_timeout_makes_the_operator_wait_as_long() -> None:
    """Pods give up on a rank after 0.8 of the timeout, a tenth of it before the report."""
    slow = World()
    slow.add_profile("cpu", {**CPU_PROFILE, "collectiveTimeoutSeconds": 3600})
    world, pods = training(slow)
    report(world, pods[0])
    world.tick(3599)
    report(world, pods[0])
    assert world.status["restarts"] == 0
    world.tick(1)
    report(world, pods[0])
    assert world.status["restarts"] == 1
    assert "for 60 minutes" in world.status["failure"]["message"]


def test_a_rank_that_recovers_resets_the_timeout() -> None:
    world, pods = training()
    report(world, pods[0])
    world.tick(1100)
    report(world, pods[0], [])
    assert "stalledSince" not in world.status["progress"]
    world.tick(10)
    report(world, pods[0])
    world.tick(1100)
    report(world, pods[0])
    assert world.status["restarts"] == 0


def test_a_restarted_operator_keeps_the_time_of_the_first_report() -> None:
    world, pods = training()
    report(world, pods[0])
    world.tick(600)
    world.responses.clear()
    world.settle()
    world.tick(600)
    report(world, pods[0])
    assert world.status["failure"]["reason"] == "RankStalled"


def test_restarts_run_out_by_it_and_the_gang_is_ended() -> None:
    world, pods = training(World(job_manifest(maxRestarts=0)))
    report(world, pods[0])
    world.tick(1200)
    report(world, pods[0])
    assert world.status["phase"] == "Failed"
    assert world.status["failure"]["reason"] == "RankStalled"
    assert world.names("Job") == ["glossary-prepare-1"]


@pytest.mark.parametrize("code", [75, 76])
def test_what_the_pods_report_comes_first(code: int) -> None:
    world, pods = training()
    report(world, pods[0])
    world.tick(1200)
    for pod in pods:
        world.end_pod(pod, code)
    world.settle()
    assert world.status["failure"]["reason"] in ("Crashed", "Preempted")
