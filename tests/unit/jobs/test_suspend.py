"""Suspend and resume: what is stopped, what is kept, what is counted."""

import pytest
from finetune_operator.decision import Manifest

from tests.unit.jobs.world import World, failed, job_manifest, recover, result, training


def suspending(stage: str = "train", grace: int = 120) -> tuple[World, list[Manifest]]:
    """A world in which the pods of a stage are being deleted because of suspend."""
    world = World()
    world.run_until(stage)
    pods = list(world.add_pods(f"glossary-{stage}-1"))
    world.settle()
    world.grace = grace
    world.edit(suspend=True)
    world.settle()
    return world, pods


def stopped(world: World, pods: list[Manifest], step: int = 120) -> None:
    """Every rank has saved and ended, and the pods are gone with their Job."""
    facts = {"steps": step, "worldSize": 2, "engine": "DDP"}
    for pod in pods:
        world.end_pod(pod, 76, result("train", outcome="Preempted", train=facts))
    world.settle()
    for pod in pods:
        world.remove_pod(pod)
    world.settle()


def test_pods_are_deleted_and_waited_for() -> None:
    world, _ = suspending()
    assert world.names("Job") == ["glossary-prepare-1"]
    assert world.status["phase"] == "Training"
    message = world.status["message"]
    assert message.startswith("train is stopping, after a checkpoint: suspend was requested")
    assert world.condition("Reconciling")["status"] == "True"
    assert world.condition("Suspended")["status"] == "False"
    assert "suspendedAt" not in world.status


def test_a_job_is_not_called_suspended_while_its_job_could_still_have_pods() -> None:
    """Those of a Job that was just created may be missing from the cache."""
    world = World()
    world.run_until("train")
    world.edit(suspend=True)
    world.reconcile()
    assert world.status["phase"] == "Queued"
    assert "suspendedAt" not in world.status
    assert world.names("Job") == ["glossary-prepare-1"]
    world.settle()
    assert world.status["phase"] == "Suspended"


def test_a_suspended_job_rests_and_shows_from_where_it_will_continue() -> None:
    world, pods = suspending()
    stopped(world, pods)
    status = world.status
    assert status["phase"] == "Suspended"
    assert status["message"] == "suspended; train resumes from step 120"
    assert status["suspendedAt"] == "2026-01-05T12:00:20Z"
    overall = {c["type"]: c["status"] for c in status["conditions"]}
    assert overall["Suspended"] == "True"
    assert (overall["Reconciling"], overall["Stalled"]) == ("False", "False")
    assert overall["Succeeded"] == "Unknown"
    assert status["observedGeneration"] == 2
    assert world.stage("train")["state"] == "Pending"
    assert world.decision.requeue_after is None
    assert world.decision.requests == ()
    events = [(event.type, event.reason) for event in world.events]
    assert events[-1] == ("Normal", "Suspended")
    assert "Warning" not in [kind for kind, _ in events]


def test_resuming_is_the_next_attempt_at_once_and_free() -> None:
    world, pods = suspending()
    stopped(world, pods)
    world.tick(3600)
    world.edit(suspend=False)
    world.settle()
    assert "glossary-train-2" in world.names("Job")
    status = world.status
    assert status["phase"] == "Queued"
    assert status["restarts"] == 0
    assert status["suspendedSeconds"] == 3600
    assert "suspendedAt" not in status
    resumed = next(event for event in world.events if event.reason == "Resumed")
    assert resumed.message == "train is starting, attempt 2, resumes from step 120"
    training(world, 2)
    world.succeed("train", 2)
    world.settle()
    assert "failure" not in world.status


def test_suspended_again_the_time_adds_up() -> None:
    world, pods = suspending()
    stopped(world, pods)
    world.tick(60)
    world.edit(suspend=False)
    world.settle()
    again = list(world.add_pods("glossary-train-2"))
    world.settle()
    world.edit(suspend=True)
    world.settle()
    for pod in again:
        world.end_pod(pod, 76)
    world.settle()
    world.tick(40)
    world.edit(suspend=False)
    world.settle()
    assert world.status["suspendedSeconds"] == 100
    assert "glossary-train-3" in world.names("Job")


def test_a_job_created_suspended_starts_nothing_and_has_not_begun() -> None:
    world = World(job_manifest(suspend=True))
    world.settle()
    assert world.status["phase"] == "Suspended"
    assert world.status["message"] == "suspended before prepare"
    assert "startedAt" not in world.status
    assert world.names("Job") == world.names("ConfigMap") == []
    world.tick(500)
    world.edit(suspend=False)
    world.settle()
    assert world.names("Job") == ["glossary-prepare-1"]
    assert world.status["startedAt"] == "2026-01-05T12:08:20Z"
    assert world.status["suspendedSeconds"] == 0, "it had not started"


def test_a_stage_that_ends_well_meanwhile_has_ended() -> None:
    world, _ = suspending()
    for pod in world.pods("glossary-train-1"):
        world.end_pod(pod, 0, result("train"))
    world.settle()
    assert world.stage("train")["state"] == "Succeeded"
    assert world.status["phase"] == "Suspended"
    assert world.status["message"] == "suspended before evaluate"
    assert "glossary-evaluate-1" not in world.names("Job")
    world.edit(suspend=False)
    world.settle()
    assert "glossary-evaluate-1" in world.names("Job")


def test_a_stage_that_ends_without_its_facts_meanwhile_is_not_tried_again_before_the_resume() -> (
    None
):
    world = World()
    world.settle()
    (pod,) = world.add_pods("glossary-prepare-1")
    world.settle()
    world.grace = 30
    world.edit(suspend=True)
    world.settle()
    world.end_pod(pod, 0, result("prepare", model=None))
    world.settle()
    world.tick(60)
    world.settle()
    assert world.status["phase"] == "Suspended"
    assert world.names("Job") == []
    world.edit(suspend=False)
    world.settle()
    assert world.names("Job") == ["glossary-prepare-2"]


def test_a_job_whose_last_stage_ends_well_meanwhile_has_succeeded() -> None:
    world = World(job_manifest(serve=None))
    world.run_until("export")
    (pod,) = world.add_pods("glossary-export-1")
    world.settle()
    world.grace = 30
    world.edit(suspend=True)
    world.settle()
    world.end_pod(pod, 0, result("export"))
    world.settle()
    assert world.status["phase"] == "Succeeded"


def test_an_error_of_the_user_ends_the_job_all_the_same() -> None:
    world, pods = suspending()
    world.end_pod(pods[0], 64, failed("train", "LossDiverged"))
    world.settle()
    assert world.status["phase"] == "Failed"
    assert world.status["failure"]["reason"] == "LossDiverged"


def test_what_goes_wrong_after_the_request_is_not_counted() -> None:
    world, pods = suspending()
    world.end_pod(pods[0], 75, failed("train", "NoSpaceLeft"))
    world.end_pod(pods[1], 137)
    world.settle()
    assert world.status["phase"] == "Suspended"
    assert world.status["restarts"] == 0
    assert world.status["message"] == "suspended; train starts over"


def test_a_crash_before_the_request_is_counted() -> None:
    world, pods = training()
    world.end_pod(pods[0], 1)
    world.edit(suspend=True)
    world.settle()
    assert world.status["restarts"] == 1
    assert world.status["phase"] == "Suspended"
    world.edit(suspend=False)
    world.settle()
    assert "glossary-train-2" in world.names("Job"), "at once, regardless of the back-off"
    assert world.status["restarts"] == 1


def test_the_last_crash_before_the_request_fails_the_job() -> None:
    world, pods = training(World(job_manifest(maxRestarts=0)))
    world.end_pod(pods[0], 1)
    world.edit(suspend=True)
    world.settle()
    assert world.status["phase"] == "Failed"


def test_back_off_that_runs_is_suspended_too() -> None:
    world, pods = training()
    world.end_pod(pods[0], 1)
    world.settle()
    world.edit(suspend=True)
    world.settle()
    assert world.status["phase"] == "Suspended"
    assert "glossary-train-1" not in world.names("Job")
    assert "retryAt" not in world.stage("train")
    recover(world, 100)
    assert world.status["phase"] == "Suspended"
    assert world.names("Job") == ["glossary-prepare-1"]


def test_a_pod_on_a_dead_node_is_named_and_not_waited_for_after_its_time() -> None:
    world, pods = suspending(grace=120)
    world.end_pod(pods[0], 76)
    recover(world, 120)
    assert world.status["phase"] == "Training", "the kubelet may still report"
    recover(world, 10)
    name = pods[1]["metadata"]["name"]
    assert world.status["phase"] == "Suspended"
    assert f"pod {name} on node node2 cannot be ended" in world.status["message"]
    world.edit(suspend=False)
    world.settle()
    assert "glossary-train-2" in world.names("Job")


def test_pods_whose_job_was_deleted_without_them_are_named() -> None:
    """`kubectl delete job --cascade=orphan`: only the user can end them."""
    world, pods = training()
    world.remove("Job", "glossary-train-1")
    for pod in pods:
        world.patch(pod, {"metadata": {"ownerReferences": None}})
    world.edit(suspend=True)
    world.settle()
    names = " ".join(pod["metadata"]["name"] for pod in pods)
    assert world.status["message"].endswith(f"without its pods: kubectl delete pod {names}")
    for pod in pods:
        world.remove_pod(pod)
    world.settle()
    assert world.status["phase"] == "Suspended"


def test_a_gang_on_many_dead_nodes_can_be_suspended_too() -> None:
    """The API server rejects a message that names them all."""
    training = {"maxSteps": 30, "batchSize": 200, "maxSequenceLength": 128}
    world = World(job_manifest(training=training, compute={"profile": "cpu", "nodes": 200}))
    world.run_until("train")
    world.add_pods("glossary-train-1")
    world.settle()
    world.grace = 120
    world.edit(suspend=True)
    world.settle()
    recover(world, 130)
    assert world.status["phase"] == "Suspended"
    rest = " and 196 more cannot be ended, check those nodes"
    assert world.status["message"].endswith(rest)


def test_suspended_stays_suspended_when_a_late_pod_shows_up() -> None:
    world, pods = suspending()
    stopped(world, pods)
    world.load({**pods[0], "status": {"phase": "Running"}})
    world.settle()
    assert world.status["phase"] == "Suspended"


@pytest.mark.parametrize("stage", ["prepare", "evaluate", "export"])
def test_any_stage_can_be_suspended(stage: str) -> None:
    world, pods = suspending(stage, grace=30)
    assert world.status["message"].startswith(f"{stage} is stopping: suspend was requested")
    for pod in pods:
        world.end_pod(pod, 76)
    world.settle()
    assert world.status["phase"] == "Suspended"
    assert world.status["message"] == f"suspended; {stage} starts over"
    world.edit(suspend=False)
    world.settle()
    assert f"glossary-{stage}-2" in world.names("Job")


def test_a_roll_out_waits_and_continues() -> None:
    world = World()
    world.run_until("export")
    world.add_pods("glossary-export-1")
    world.settle()
    world.grace = 30
    world.edit(suspend=True)
    world.succeed("export")
    world.settle()
    assert world.status["phase"] == "Suspended"
    assert world.status["message"] == "suspended before endpoint glossary has taken the model"
    assert world.names("ModelEndpoint") == []
    world.edit(suspend=False)
    world.settle()
    world.serve()
    world.settle()
    assert world.status["phase"] == "Succeeded"


def test_suspend_taken_back_while_pods_end_continues_without_a_rest() -> None:
    world, pods = suspending()
    world.edit(suspend=False)
    world.settle()
    assert world.status["message"].startswith("train is stopping")
    for pod in pods:
        world.end_pod(pod, 76)
    world.settle()
    recover(world, 1)
    assert "glossary-train-2" in world.names("Job")
    assert world.status["restarts"] == 0
    assert world.status["suspendedSeconds"] == 0


def test_an_operator_that_crashes_after_the_status_write_deletes_the_job_later() -> None:
    world, _ = training()
    job = world.need("Job", "glossary-train-1")
    world.edit(suspend=True)
    world.reconcile()
    world.load(job)
    assert [ref.name for ref in world.reconcile().delete] == ["glossary-train-1"]
