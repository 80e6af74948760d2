"""Every state of a FineTuneJob."""

from __future__ import annotations

from typing import Any

from finetune_operator.decision import EventRecord, Manifest
from finetune_operator.jobs.plan import build_rejected_job_status

from tests.unit.gitops.cases import (
    DEGRADED,
    HEALTHY,
    HELD,
    PROGRESSING,
    SUSPENDED,
    Cases,
    Recorded,
)
from tests.unit.jobs.world import DIGEST, World, failed, job_manifest, recover, training

NO_NODE = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."


class RecordedWorld(Recorded, World):
    """A job, and every status that was written to it."""

    kind, name = "FineTuneJob", "glossary"

    def __init__(self, **spec: Any) -> None:
        super().__init__(job_manifest(**spec))

    def start(self, stage: str, phase: str = "Running") -> list[Manifest]:
        """Every stage before this one, and the pods of its first attempt."""
        self.run_until(stage)
        pods = list(self.add_pods(f"glossary-{stage}-1", phase))
        self.settle()
        return pods


CASES = Cases(RecordedWorld)
expect = CASES.expect


# Before the operator, and between an edit and the operator.


@expect(PROGRESSING)
def was_just_created(world: RecordedWorld) -> None:
    pass


@expect(PROGRESSING)
def was_edited_after_its_status(world: RecordedWorld) -> None:
    training(world)
    world.edit(maxRestarts=5)


@expect(PROGRESSING, serve=None)
def has_ended_and_was_edited(world: RecordedWorld) -> None:
    world.run_until("end")
    world.edit(ttlSecondsAfterFinished=60)


@expect(HEALTHY, serve=None)
def has_ended_and_an_edit_was_observed(world: RecordedWorld) -> None:
    world.run_until("end")
    world.edit(ttlSecondsAfterFinished=60)
    world.settle()


# On its way.


@expect(PROGRESSING)
def is_pending(world: RecordedWorld) -> None:
    world.reconcile()


@expect(PROGRESSING)
def is_preparing(world: RecordedWorld) -> None:
    world.start("prepare")


@expect(PROGRESSING)
def is_queued_while_its_images_are_pulled(world: RecordedWorld) -> None:
    for pod in world.start("train", "Pending"):
        world.set_waiting(pod, "ContainerCreating", "")
    world.settle()


@expect(PROGRESSING)
def is_queued_while_an_autoscaler_may_add_a_node(world: RecordedWorld) -> None:
    for pod in world.start("train", "Pending"):
        world.set_unschedulable(pod, NO_NODE)
    world.tick(60)
    world.settle()


@expect(PROGRESSING)
def is_training(world: RecordedWorld) -> None:
    _, (leader, _) = training(world)
    world.report_progress(leader, step=12, totalSteps=30, loss=2.5)
    world.settle()


@expect(PROGRESSING)
def is_evaluating(world: RecordedWorld) -> None:
    world.start("evaluate")


@expect(PROGRESSING)
def is_exporting(world: RecordedWorld) -> None:
    world.start("export")


@expect(PROGRESSING)
def is_deploying(world: RecordedWorld) -> None:
    world.run_until("serve")
    world.serve("Checking", message="asking the probe")
    world.settle()


@expect(PROGRESSING)
def waits_for_an_endpoint_that_tries_again(world: RecordedWorld) -> None:
    world.run_until("serve")
    world.serve("Failed", message="CrashLoop: it ended", retry_at=world.time(60))
    world.settle()


# Interrupted, and continuing by itself.


@expect(PROGRESSING)
def backs_off_after_a_crash(world: RecordedWorld) -> None:
    _, pods = training(world)
    world.end_pod(pods[0], 1)
    world.settle()


@expect(PROGRESSING)
def trains_again_after_a_crash(world: RecordedWorld) -> None:
    _, pods = training(world)
    world.end_pod(pods[0], 1)
    world.settle()
    recover(world, 60)
    training(world, 2)


@expect(PROGRESSING)
def lost_a_pod_to_a_drain(world: RecordedWorld) -> None:
    _, pods = training(world)
    world.mark_disrupted(pods[0], "EvictionByEvictionAPI")
    world.mark_deleted(pods[0], 120)
    world.settle()


@expect(PROGRESSING)
def gave_the_nodes_of_a_waiting_gang_back(world: RecordedWorld) -> None:
    pods = world.start("train")
    world.set_unschedulable(pods[1], NO_NODE)
    world.settle()
    world.tick(600)
    world.settle()


@expect(DEGRADED)
def has_a_gang_that_waits_again(world: RecordedWorld) -> None:
    for attempt, seconds in ((1, 600), (2, 10)):
        pods = world.add_pods(f"glossary-train-{attempt}") if attempt > 1 else world.start("train")
        world.set_unschedulable(pods[1], NO_NODE)
        world.settle()
        world.tick(seconds)
        world.settle()
        if attempt == 1:
            recover(world, 300)


# Waiting for a person.


@expect(DEGRADED, compute={"profile": "h100"})
def misses_its_profile(world: RecordedWorld) -> None:
    world.settle()


@expect(DEGRADED, compute={})
def finds_no_default_profile(world: RecordedWorld) -> None:
    world.settle()


@expect(DEGRADED)
def misses_its_claim(world: RecordedWorld) -> None:
    world.remove("PersistentVolumeClaim", "assets")
    world.settle()


@expect(DEGRADED)
def misses_its_secret(world: RecordedWorld) -> None:
    (pod,) = world.start("prepare", "Pending")
    world.set_waiting(pod, "CreateContainerConfigError", 'secret "hf-token" not found')
    world.settle()


@expect(DEGRADED)
def cannot_pull_its_image(world: RecordedWorld) -> None:
    (pod,) = world.start("prepare", "Pending")
    world.set_waiting(pod, "ImagePullBackOff", "no such host")
    world.settle()


@expect(DEGRADED)
def has_pods_that_a_quota_refuses(world: RecordedWorld) -> None:
    world.settle()
    world.refuse_pods("glossary-prepare-1", "Error creating: pods is forbidden: exceeded quota")
    world.tick(21)
    world.settle()


@expect(DEGRADED)
def has_a_job_that_the_api_server_rejects(world: RecordedWorld) -> None:
    world.settle()
    why = EventRecord("Warning", "Forbidden", "exceeded quota: jobs")
    status = build_rejected_job_status(world.job, why, world.now)
    assert status is not None
    world.write_status(world.job, status)


@expect(DEGRADED)
def found_no_node_in_time(world: RecordedWorld) -> None:
    for pod in world.start("train", "Pending"):
        world.set_unschedulable(pod, NO_NODE)
    world.tick(600)
    world.settle()


@expect(DEGRADED)
def has_a_spec_of_a_newer_version(world: RecordedWorld) -> None:
    world.edit(training={"quantum": True})
    world.settle()


@expect(PROGRESSING)
def continues_when_its_secret_appears(world: RecordedWorld) -> None:
    (pod,) = world.start("prepare", "Pending")
    world.set_waiting(pod, "CreateContainerConfigError", 'secret "hf-token" not found')
    world.settle()
    world.replace_status(pod, {"phase": "Running", "podIP": "10.0.0.7"})
    world.settle()


# Held.


@expect(HELD)
def has_a_stage_that_a_queue_holds_back(world: RecordedWorld) -> None:
    world.run_until("train")
    world.patch(world.need("Job", "glossary-train-1"), {"spec": {"suspend": True}})
    world.settle()


@expect(PROGRESSING)
def was_admitted_by_its_queue(world: RecordedWorld) -> None:
    world.settle()
    job = world.need("Job", "glossary-prepare-1")
    world.patch(job, {"spec": {"suspend": True}})
    world.settle()
    world.patch(job, {"spec": {"suspend": False}})
    world.settle()


@expect(PROGRESSING)
def saves_before_it_is_suspended(world: RecordedWorld) -> None:
    training(world)
    world.grace = 120
    world.edit(suspend=True)
    world.settle()


@expect(SUSPENDED)
def was_suspended_while_it_trained(world: RecordedWorld) -> None:
    training(world)
    world.edit(suspend=True)
    world.settle()


@expect(SUSPENDED, suspend=True)
def was_created_suspended(world: RecordedWorld) -> None:
    world.settle()


@expect(SUSPENDED)
def was_suspended_before_the_endpoint_took_its_model(world: RecordedWorld) -> None:
    world.run_until("serve")
    world.edit(suspend=True)
    world.settle()


@expect(PROGRESSING)
def was_resumed(world: RecordedWorld) -> None:
    training(world)
    world.edit(suspend=True)
    world.settle()
    world.edit(suspend=False)
    world.settle()


# At the end.


@expect(HEALTHY)
def has_succeeded(world: RecordedWorld) -> None:
    world.run_until("serve")
    world.serve()
    world.settle()


@expect(HEALTHY, serve=None)
def has_succeeded_without_an_endpoint(world: RecordedWorld) -> None:
    world.run_until("end")


@expect(DEGRADED)
def has_failed_in_prepare(world: RecordedWorld) -> None:
    (pod,) = world.start("prepare")
    world.end_pod(pod, 64, failed("prepare", "BadRow"))
    world.settle()


@expect(DEGRADED, maxRestarts=0)
def has_failed_after_its_restarts(world: RecordedWorld) -> None:
    _, pods = training(world)
    world.end_pod(pods[0], 1)
    world.settle()


@expect(DEGRADED)
def has_failed_its_gate(world: RecordedWorld) -> None:
    (pod,) = world.start("evaluate")
    world.end_pod(pod, 64, failed("evaluate", "GateNotMet"))
    world.settle()


@expect(DEGRADED, activeDeadlineSeconds=60)
def has_exceeded_its_deadline(world: RecordedWorld) -> None:
    world.start("prepare")
    world.tick(61)
    world.settle()


@expect(DEGRADED)
def has_failed_in_export(world: RecordedWorld) -> None:
    (pod,) = world.start("export")
    world.end_pod(pod, 64, failed("export", "NoSpaceLeft"))
    world.settle()


@expect(DEGRADED)
def has_a_model_that_its_endpoint_refused(world: RecordedWorld) -> None:
    world.run_until("serve")
    world.serve("Failed", message="the probe got another answer")
    world.settle()


@expect(DEGRADED)
def waits_for_an_endpoint_that_is_pinned_to_another_model(world: RecordedWorld) -> None:
    world.run_until("export")
    pinned = {"artifact": {"uri": "pvc://finetune-workspace/artifacts/b", "digest": DIGEST}}
    meta = {"name": "glossary", "namespace": world.namespace}
    world.load({"kind": "ModelEndpoint", "metadata": meta, "spec": pinned})
    world.run_stage("export")


@expect(DEGRADED)
def was_superseded_by_another_job(world: RecordedWorld) -> None:
    world.run_until("serve")
    world.serve("Checking")
    other = {"uri": "pvc://finetune-workspace/artifacts/b", "digest": DIGEST.replace("ab", "cd")}
    world.replace_fields(world.need("ModelEndpoint", "glossary"), {"artifact": other})
    world.settle()


@expect(DEGRADED)
def has_failed_while_it_was_being_suspended(world: RecordedWorld) -> None:
    _, pods = training(world)
    world.grace = 120
    world.edit(suspend=True)
    world.settle()
    world.end_pod(pods[0], 64, failed("train", "LossDiverged"))
    world.settle()
