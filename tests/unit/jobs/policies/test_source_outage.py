"""A source that is down for a while costs no restart; one that never answers ends the job."""

from __future__ import annotations

from datetime import timedelta

from finetune_operator.jobs.policies.source_outage import PATIENCE

from tests.unit.jobs.world import START, World, failed, recover

DOWN = "https://hub.example does not answer"


def fail_next(world: World) -> None:
    """The next attempt of prepare finds the source down, 30 seconds after it began."""
    (job,) = world.names("Job")
    number = int(job.rpartition("-")[2])
    (pod,) = world.add_pods(job)
    world.settle()
    world.tick(30)
    world.end_pod(pod, 75, failed("prepare", "SourceUnavailable", number, message=DOWN))
    world.settle()


def test_an_outage_of_minutes_costs_no_restart_and_attempts_are_spread() -> None:
    world = World()
    world.settle()
    attempts = 0
    while world.now < START + PATIENCE / 2:
        fail_next(world)
        attempts += 1
        assert world.status["phase"] == "Preparing"
        assert DOWN in world.status["message"]
        assert "restart" not in world.status["message"]
        recover(world, 300)
    assert world.status["restarts"] == 0
    assert attempts > 4
    world.add_pods(f"glossary-prepare-{attempts + 1}")
    world.settle()
    world.succeed("prepare", attempts + 1)
    world.settle()
    assert world.stage("prepare")["state"] == "Succeeded"


def test_a_source_that_never_answers_ends_the_job() -> None:
    world = World()
    world.settle()
    while world.status["phase"] != "Failed":
        fail_next(world)
        assert world.now < START + PATIENCE + timedelta(hours=1)
        recover(world, 300)
    assert world.now > START + PATIENCE
    assert world.status["failure"]["reason"] == "SourceUnavailable"
    assert world.status["restarts"] == 3
