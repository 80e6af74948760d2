"""A rank that gives no sign of life: told at once, replaced after long."""

import pytest
from finetune_operator.decision import Manifest

from tests.unit.jobs.world import World, job_manifest, recover, training

SILENT = [{"rank": 1, "host": "glossary-train-1-1", "step": 12, "updatedAt": 0}]


def tell(world: World, pod: Manifest, stalled: object = SILENT) -> None:
    world.tell(pod, step=12, totalSteps=30, message="training", stalled=stalled)
    world.settle()


def test_it_is_named_in_the_message() -> None:
    world, pods = training()
    tell(world, pods[0])
    says = "no sign of life from rank 1 on host glossary-train-1-1 after step 12"
    assert world.status["message"] == says
    assert world.status["progress"]["stalledSince"] == "2026-01-05T12:00:20Z"


def test_it_is_replaced_after_twenty_minutes_as_a_crash_of_its_node() -> None:
    world, pods = training()
    tell(world, pods[0])
    world.tick(1199)
    tell(world, pods[0])
    assert world.status["restarts"] == 0
    world.tick(1)
    tell(world, pods[0])
    status = world.status
    assert status["restarts"] == 1
    assert status["failure"]["reason"] == "RankStalled"
    assert "rank 1 on host glossary-train-1-1" in status["failure"]["message"]
    assert status["nodes"] == [{"name": "node2", "failures": 1, "excluded": False}]
    assert "stalledSince" not in status["progress"]
    recover(world, 10)
    assert "glossary-train-2" in world.names("Job")
    assert "glossary-train-1" not in world.names("Job")


def test_a_rank_that_comes_back_starts_the_count_anew() -> None:
    world, pods = training()
    tell(world, pods[0])
    world.tick(1100)
    tell(world, pods[0], [])
    assert "stalledSince" not in world.status["progress"]
    world.tick(10)
    tell(world, pods[0])
    world.tick(1100)
    tell(world, pods[0])
    assert world.status["restarts"] == 0


def test_an_operator_that_starts_anew_goes_on_counting() -> None:
    world, pods = training()
    tell(world, pods[0])
    world.tick(600)
    world.answers.clear()
    world.settle()
    world.tick(600)
    tell(world, pods[0])
    assert world.status["failure"]["reason"] == "RankStalled"


def test_restarts_run_out_by_it_and_the_gang_is_ended() -> None:
    world, pods = training(World(job_manifest(maxRestarts=0)))
    tell(world, pods[0])
    world.tick(1200)
    tell(world, pods[0])
    assert world.status["phase"] == "Failed"
    assert world.status["failure"]["reason"] == "RankStalled"
    assert world.names("Job") == ["glossary-prepare-1"]


@pytest.mark.parametrize("code", [75, 76])
def test_what_the_pods_say_comes_first(code: int) -> None:
    world, pods = training()
    tell(world, pods[0])
    world.tick(1200)
    for pod in pods:
        world.end_pod(pod, code)
    world.settle()
    assert world.status["failure"]["reason"] in ("Crashed", "Preempted")
