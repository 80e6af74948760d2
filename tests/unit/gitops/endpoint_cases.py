"""Every state of a ModelEndpoint."""

from __future__ import annotations

from typing import Any

from finetune_operator.decision import EventRecord
from finetune_operator.endpoints.plan import build_rejected_endpoint_status

from tests.unit.endpoints.scenarios import answer_checks
from tests.unit.endpoints.world import NAME, World, artifact, endpoint, exporting_job
from tests.unit.gitops.cases import DEGRADED, HEALTHY, PROGRESSING, Cases, Recorded

CRASH = {"reason": "Error", "exitCode": 1, "message": "RuntimeError: no kernel image"}


class RecordedWorld(Recorded, World):
    """An endpoint, and every status that was written to it."""

    kind, name = "ModelEndpoint", NAME

    def __init__(self, **spec: Any) -> None:
        super().__init__(endpoint(**spec))

    def start(self, number: int = 1) -> str:
        """The pod of a revision, which the scheduler has not placed yet."""
        self.settle()
        (pod,) = self.add_pods(number)
        self.settle()
        return pod

    def crash(self, number: int = 1) -> None:
        """The server of a revision ends for the third time."""
        self.set_container(self.start(number), restarts=3, running={}, last=CRASH)
        self.settle()


CASES = Cases(RecordedWorld)
expect = CASES.expect


@expect(PROGRESSING)
def was_just_created(world: RecordedWorld) -> None:
    pass


@expect(PROGRESSING)
def was_edited_after_its_status(world: RecordedWorld) -> None:
    world.roll_out()
    world.edit(artifact=artifact("b"))


# The first revision.


@expect(DEGRADED, profile="h100")
def misses_its_profile(world: RecordedWorld) -> None:
    world.settle()


@expect(DEGRADED)
def has_a_spec_of_a_newer_version(world: RecordedWorld) -> None:
    world.edit(replicas="many")
    world.settle()


@expect(PROGRESSING)
def starts_its_first_revision(world: RecordedWorld) -> None:
    world.start()


@expect(PROGRESSING)
def checks_its_first_revision(world: RecordedWorld) -> None:
    world.settle()
    world.make_pods_ready(1)
    world.settle()


@expect(DEGRADED)
def cannot_pull_its_image(world: RecordedWorld) -> None:
    world.set_container(world.start(), waiting={"reason": "ErrImagePull", "message": "not found"})
    world.settle()


@expect(DEGRADED)
def has_a_deployment_that_the_api_server_rejects(world: RecordedWorld) -> None:
    why = EventRecord("Warning", "Forbidden", "exceeded quota: gpus")
    found = world.need("ModelEndpoint", NAME)
    status = build_rejected_endpoint_status(found, why, world.now)
    assert status is not None
    world.write_status(found, status)


@expect(DEGRADED)
def has_a_first_revision_that_answers_wrongly(world: RecordedWorld) -> None:
    world.settle()
    world.make_pods_ready(1)
    answer_checks(world, "something else")


@expect(PROGRESSING)
def tries_a_first_revision_that_crashed_again(world: RecordedWorld) -> None:
    world.crash()


@expect(DEGRADED)
def has_tried_its_first_revision_for_the_last_time(world: RecordedWorld) -> None:
    for number, minutes in ((1, 1), (2, 4), (3, 16), (4, 0)):
        world.crash(number)
        world.tick(60 * minutes)
        world.settle()


# Without an artifact in the spec.


@expect(PROGRESSING, artifact=None, probe=None)
def waits_for_the_model_of_a_job(world: RecordedWorld) -> None:
    world.settle()


@expect(DEGRADED, artifact=None, probe=None, profile="h100")
def misses_its_profile_when_a_job_has_a_model(world: RecordedWorld) -> None:
    world.settle()
    world.load(exporting_job("a"))
    world.settle()


@expect(HEALTHY, artifact=None, probe=None)
def serves_the_model_of_a_job_that_was_deleted(world: RecordedWorld) -> None:
    world.load(exporting_job("a"))
    world.roll_out()
    world.remove("FineTuneJob", "job-a")
    world.settle()


@expect(PROGRESSING)
def serves_an_old_revision_and_waits_for_the_model_of_a_job(world: RecordedWorld) -> None:
    world.roll_out()
    world.edit(artifact=None, probe=None)
    world.settle()


# A revision that serves.


@expect(HEALTHY)
def is_ready(world: RecordedWorld) -> None:
    world.roll_out()


@expect(PROGRESSING)
def adds_a_replica(world: RecordedWorld) -> None:
    world.roll_out()
    world.edit(replicas=2)
    world.settle()


@expect(HEALTHY)
def is_ready_again_after_a_pod_was_lost(world: RecordedWorld) -> None:
    world.roll_out()
    world.set_pod_ready(f"{NAME}-r1-0", ready=False)
    world.settle()
    world.set_pod_ready(f"{NAME}-r1-0", ready=True)
    world.settle()


@expect(PROGRESSING)
def waits_for_its_only_pod(world: RecordedWorld) -> None:
    world.roll_out()
    world.set_pod_ready(f"{NAME}-r1-0", ready=False)
    world.settle()


@expect(DEGRADED)
def has_only_a_pod_that_crashes(world: RecordedWorld) -> None:
    world.roll_out()
    backing_off = {"reason": "CrashLoopBackOff", "message": "back-off 5m"}
    world.set_container(f"{NAME}-r1-0", restarts=30, waiting=backing_off, last=CRASH)
    world.set_pod_ready(f"{NAME}-r1-0", ready=False)
    world.settle()


# A new revision while an old one serves.


@expect(PROGRESSING)
def starts_a_second_revision(world: RecordedWorld) -> None:
    world.roll_out()
    world.edit(artifact=artifact("b"))
    world.start(2)


@expect(HEALTHY)
def has_switched_to_a_second_revision(world: RecordedWorld) -> None:
    world.roll_out()
    world.edit(artifact=artifact("b"))
    world.roll_out(2)


@expect(DEGRADED)
def serves_its_old_revision_as_the_new_one_answers_wrongly(world: RecordedWorld) -> None:
    world.roll_out()
    world.edit(artifact=artifact("b"))
    world.settle()
    world.make_pods_ready(2)
    answer_checks(world, "something else")


@expect(PROGRESSING)
def serves_its_old_revision_until_the_new_one_is_tried_again(world: RecordedWorld) -> None:
    world.roll_out()
    world.edit(artifact=artifact("b"))
    world.crash(2)


@expect(HEALTHY)
def was_set_back_to_its_old_artifact(world: RecordedWorld) -> None:
    world.roll_out()
    world.edit(artifact=artifact("b"))
    world.settle()
    world.make_pods_ready(2)
    answer_checks(world, "something else")
    world.edit(artifact=artifact("a"))
    world.settle()
