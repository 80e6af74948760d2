"""A job that has ended: nothing of it runs on, and in time it goes."""

import copy
from dataclasses import replace

from finetune_operator.decision import Decision, ObjectRef

from tests.unit.jobs.world import (
    JOB_UID,
    NAMESPACE,
    SETTINGS,
    World,
    failed,
    job_manifest,
    training,
)

OURS = ObjectRef("FineTuneJob", NAMESPACE, "glossary", JOB_UID)


def ended(**spec: object) -> World:
    world = World(job_manifest(serve=None, **spec))
    world.run_until("end")
    assert world.status["phase"] == "Succeeded"
    return world


def test_a_gang_that_lives_is_ended_even_by_the_next_operator() -> None:
    """The status was written, then the operator died."""
    world, _ = training(World(job_manifest(activeDeadlineSeconds=600)))
    running = world.need("Job", "glossary-train-1")
    world.tick(600)
    world.reconcile()
    world.load(running)
    decision = world.reconcile()
    assert [ref.uid for ref in decision.delete] == [running["metadata"]["uid"]]
    assert not decision.create
    assert decision.status is None


def test_a_job_that_has_made_no_pods_yet_lives() -> None:
    world = World(job_manifest(activeDeadlineSeconds=600))
    world.settle()
    world.tick(600)
    world.settle()
    assert world.names("Job") == []


def test_ended_jobs_stay_for_their_logs() -> None:
    world = World()
    world.settle()
    (pod,) = world.add_pods("glossary-prepare-1")
    world.end_pod(pod, 64, failed("prepare", "BrokenRow"))
    world.settle()
    assert world.reconcile() == Decision()
    assert world.names("Job") == ["glossary-prepare-1"]


def test_a_gang_of_which_one_pod_failed_is_ended_by_its_own_controller_and_keeps_its_logs() -> None:
    world, pods = training(World(job_manifest(maxRestarts=0)))
    world.end_pod(pods[0], 1)
    world.settle()
    assert world.status["phase"] == "Failed"
    assert "glossary-train-1" in world.names("Job")


def test_a_job_without_a_time_to_live_stays() -> None:
    world = ended()
    world.tick(10**8)
    assert world.reconcile() == Decision()


def test_a_job_goes_when_its_time_is_over() -> None:
    world = ended(ttlSecondsAfterFinished=100)
    assert world.reconcile().requeue_after == 100
    world.tick(99)
    assert world.reconcile().requeue_after == 1
    assert world.decision.delete == ()
    world.tick(1)
    job = copy.deepcopy(world.job)
    assert world.reconcile().delete == (OURS,)
    world.load(job)
    assert world.reconcile().delete == (OURS,), "deleted again until it is gone"


def test_no_time_to_live_means_at_once() -> None:
    world = World(job_manifest(ttlSecondsAfterFinished=0))
    world.settle()
    (pod,) = world.add_pods("glossary-prepare-1")
    world.end_pod(pod, 64, failed("prepare", "BrokenRow"))
    world.reconcile()
    assert world.status["phase"] == "Failed", "the status records the end first"
    assert world.reconcile().delete == (OURS,)


def test_the_requeue_is_bounded() -> None:
    world = ended(ttlSecondsAfterFinished=31536000)
    assert world.reconcile().requeue_after == 3600


def test_the_time_may_be_changed_after_the_end_and_that_is_seen() -> None:
    world = ended()
    world.edit(ttlSecondsAfterFinished=50)
    world.tick(20)
    decision = world.reconcile()
    assert decision.requeue_after == 30
    assert world.status["observedGeneration"] == 2
    assert {c["observedGeneration"] for c in world.status["conditions"]} == {2}
    world.edit(ttlSecondsAfterFinished=None)
    world.tick(1000)
    assert world.reconcile().delete == ()


def test_the_default_of_the_installation_is_for_jobs_without_a_time_of_their_own() -> None:
    world = ended()
    world.settings = replace(SETTINGS, default_ttl_seconds_after_finished=100)
    assert world.reconcile().requeue_after == 100
    world.edit(ttlSecondsAfterFinished=30)
    assert world.reconcile().requeue_after == 30
    world.edit(ttlSecondsAfterFinished=None)
    world.tick(100)
    assert world.reconcile().delete == (OURS,)


def test_a_job_may_refuse_the_default_of_the_installation() -> None:
    world = ended(ttlSecondsAfterFinished=-1)
    world.settings = replace(SETTINGS, default_ttl_seconds_after_finished=0)
    world.tick(10**8)
    assert world.reconcile() == Decision()


def test_the_status_has_the_time_at_which_the_job_goes() -> None:
    world = ended(ttlSecondsAfterFinished=100)
    assert world.status["expiresAt"] == world.time(100)
    world.edit(ttlSecondsAfterFinished=50)
    world.settle()
    assert world.status["expiresAt"] == world.time(50)
    world.edit(ttlSecondsAfterFinished=None)
    world.settle()
    assert "expiresAt" not in world.status
    world.settings = replace(SETTINGS, default_ttl_seconds_after_finished=70)
    world.settle()
    assert world.status["expiresAt"] == world.time(70)
    assert "ttlSecondsAfterFinished" not in world.job["spec"], "a default is not written into it"


def test_a_status_without_its_end_counts_from_the_condition() -> None:
    world = ended(ttlSecondsAfterFinished=100)
    status = {name: value for name, value in world.status.items() if name != "finishedAt"}
    world.load({**world.job, "status": status})
    assert world.reconcile().requeue_after == 100


def test_a_job_that_is_being_deleted_is_left_alone() -> None:
    world = ended(ttlSecondsAfterFinished=100)
    world.tick(100)
    world.mark_terminating(world.job)
    assert world.reconcile() == Decision()
