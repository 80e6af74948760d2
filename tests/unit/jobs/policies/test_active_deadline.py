"""activeDeadlineSeconds."""

from datetime import UTC, datetime, timedelta

import pytest
from finetune_api.failure import Failure
from finetune_api.finetunejob import FineTuneJobStatus, StageStatus
from finetune_operator.jobs.policies.active_deadline import check_deadline

from tests.unit.jobs.world import World, job_manifest, training

NOON = datetime(2026, 1, 5, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "after", "left"),
    [
        ({}, 10, None),
        ({"started_at": "2026-01-05T12:00:00Z"}, 10, 50),
        ({"started_at": "2026-01-05T12:00:00Z"}, 59.5, 0.5),
        ({"started_at": "2026-01-05T12:00:00Z"}, 60, "DeadlineExceeded"),
        ({"started_at": "2026-01-05T12:00:00Z"}, 61, "DeadlineExceeded"),
        ({"started_at": "2026-01-05T12:00:00Z", "suspended_seconds": 100}, 61, 99),
    ],
    ids=[
        "before the start",
        "running",
        "at the last moment",
        "due",
        "late",
        "time suspended is not counted",
    ],
)
def test_the_time_until_the_deadline(
    status: dict[str, object], after: float, left: float | str | None
) -> None:
    now = NOON + timedelta(seconds=after)
    stages = [
        StageStatus(name="prepare", state="Succeeded"),
        StageStatus(name="train", state="Running", attempt=2),
    ]
    found = check_deadline(FineTuneJobStatus.model_validate({**status, "stages": stages}), 60, now)
    assert (found.reason if isinstance(found, Failure) else found) == left
    if isinstance(found, Failure):
        assert (found.stage, found.attempt) == ("train", 2)


def test_a_late_job_fails_and_its_pods_are_ended() -> None:
    world, _ = training(World(job_manifest(activeDeadlineSeconds=600)))
    world.tick(579)
    world.settle()
    assert world.status["phase"] == "Training"
    assert world.decision.requeue_after == 1
    world.tick(1)
    world.settle()
    status = world.status
    assert status["phase"] == "Failed"
    assert status["failure"]["reason"] == "DeadlineExceeded"
    assert status["failure"]["stage"] == "train"
    assert status["failure"]["attempt"] == 1
    assert status["message"].startswith("train: the job has not ended 10m00s after its start (")
    assert world.names("Job") == ["glossary-prepare-1"]
    assert world.condition("Succeeded")["reason"] == "DeadlineExceeded"
    assert ("Warning", "DeadlineExceeded") in [(e.type, e.reason) for e in world.events]


def test_a_job_that_ended_well_in_the_last_moment_has_succeeded() -> None:
    world = World(job_manifest(activeDeadlineSeconds=600, serve=None))
    world.run_until("export")
    world.add_pods("glossary-export-1")
    world.settle()
    world.tick(1000)
    world.succeed("export")
    world.settle()
    assert world.status["phase"] == "Succeeded"


def test_a_late_job_starts_no_stage_any_more() -> None:
    world = World(job_manifest(activeDeadlineSeconds=600))
    world.settle()
    world.add_pods("glossary-prepare-1")
    world.settle()
    world.tick(1000)
    world.succeed("prepare")
    world.settle()
    assert world.status["failure"]["reason"] == "DeadlineExceeded"
    assert world.status["failure"]["stage"] == "train"
    assert world.stage("prepare")["state"] == "Succeeded"
    assert world.names("Job") == ["glossary-prepare-1"]


def test_a_deadline_may_be_set_raised_and_taken_away_while_the_job_runs() -> None:
    world, _ = training()
    world.tick(1000)
    world.edit(activeDeadlineSeconds=2000)
    world.settle()
    assert world.status["phase"] == "Training"
    world.tick(1100)
    world.edit(activeDeadlineSeconds=9000)
    world.settle()
    assert world.status["phase"] == "Training"
    world.edit(activeDeadlineSeconds=None)
    world.tick(10000)
    world.settle()
    assert world.status["phase"] == "Training"


def test_the_clock_stands_while_the_job_is_suspended() -> None:
    world, pods = training(World(job_manifest(activeDeadlineSeconds=600)))
    world.grace = 120
    world.edit(suspend=True)
    world.settle()
    for pod in pods:
        world.end_pod(pod, 76)
    world.settle()
    world.tick(5000)
    world.settle()
    assert world.status["phase"] == "Suspended"
    world.edit(suspend=False)
    world.settle()
    assert world.status["phase"] == "Queued"
    world.tick(600)
    world.settle()
    assert world.status["failure"]["reason"] == "DeadlineExceeded"


def test_a_dead_node_does_not_hold_a_late_job_up() -> None:
    world, _ = training(World(job_manifest(activeDeadlineSeconds=600)))
    world.grace = 120
    world.tick(600)
    world.settle()
    assert world.status["phase"] == "Failed"
    assert len(world.pods("glossary-train-1")) == 2, "they linger"
    assert world.settle().delete == ()
