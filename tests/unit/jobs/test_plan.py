"""A job from its first reconcile to its end, and across restarts of the operator."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from finetune_operator.decision import Decision
from finetune_operator.jobs.plan import reconcile_job

from tests.unit.jobs.world import (
    SETTINGS,
    World,
    failed,
    job_manifest,
    result,
)

ORDER = ["prepare", "train", "evaluate", "export"]


def test_first_write_has_phase_conditions_and_every_stage() -> None:
    world = World()
    status = world.reconcile().status
    assert status is not None
    assert status["phase"] == "Pending"
    assert status["message"] == "prepare is starting"
    assert status["observedGeneration"] == 1
    assert [stage["name"] for stage in status["stages"]] == [*ORDER, "serve"]
    assert {stage["state"] for stage in status["stages"]} == {"Pending"}
    overall = {c["type"]: c["status"] for c in status["conditions"]}
    assert overall["Succeeded"] == "Unknown"
    assert overall["Reconciling"] == "True"
    assert overall["Stalled"] == "False"
    assert {c["observedGeneration"] for c in status["conditions"]} == {1}


def test_a_job_runs_to_its_end_with_an_event_for_every_phase() -> None:
    world = World()
    phases = []
    for stage in ORDER:
        world.settle()
        world.add_pods(f"glossary-{stage}-1", "Pending")
        world.settle()
        phases.append(world.status["phase"])
        for pod in world.pods(f"glossary-{stage}-1"):
            world.replace_status(pod, {"phase": "Running", "podIP": "10.0.0.7"})
        world.settle()
        phases.append(world.status["phase"])
        world.succeed(stage)
    world.settle()
    phases.append(world.status["phase"])
    world.serve()
    world.settle()
    assert list(dict.fromkeys(phases)) == [
        "Preparing",
        "Queued",
        "Training",
        "Evaluating",
        "Exporting",
        "Deploying",
    ]
    status = world.status
    assert status["phase"] == "Succeeded"
    assert world.condition("Succeeded")["status"] == "True"
    assert world.condition("Reconciling")["status"] == "False"
    assert world.condition("Stalled")["status"] == "False"
    assert status["endpoint"] == {"name": "glossary", "url": "http://glossary.team-a.svc/v1"}
    assert status["artifact"]["uri"] == "pvc://finetune-workspace/artifacts/glossary-1b4e28ba"
    assert status["training"]["worldSize"] == 2
    assert [status["progress"][k] for k in ("step", "totalSteps", "loss")] == [30, 30, 2.91]
    assert "failure" not in status
    reasons = [event.reason for event in world.events]
    assert reasons == [
        "Pending",
        "Preparing",
        "Planned",
        "Queued",
        "Training",
        "Evaluating",
        "Exporting",
        "Deploying",
        "Succeeded",
    ]


def test_a_job_without_serve_ends_with_the_artifact() -> None:
    world = World(job_manifest(serve=None))
    world.run_until("end")
    assert world.status["phase"] == "Succeeded"
    assert "artifact at pvc://finetune-workspace/artifacts/" in world.status["message"]
    assert world.names("ModelEndpoint") == []


def test_next_stage_is_created_in_the_decision_that_sees_the_last_pod_end() -> None:
    world = World()
    world.run_until("train")
    world.add_pods("glossary-train-1")
    world.settle()
    world.succeed("train")
    created = [m["metadata"]["name"] for m in world.reconcile().create]
    assert created == ["glossary-evaluate-1"] * 2
    assert world.stage("train")["state"] == "Succeeded"


Steps = list[Callable[[World], None]]


def _steps() -> Steps:
    def start(stage: str) -> Callable[[World], None]:
        def step(world: World) -> None:
            world.add_pods(f"glossary-{stage}-1")

        return step

    def end(stage: str) -> Callable[[World], None]:
        return lambda world: world.succeed(stage)

    steps: Steps = []
    for stage in ORDER:
        steps += [start(stage), end(stage)]
    return [*steps, lambda world: world.serve()]


@pytest.mark.parametrize("lost_write", range(9))
def test_an_operator_that_crashes_before_a_status_write_changes_nothing(lost_write: int) -> None:
    """Children were created, the status was not written: the next operator starts from there."""
    world = World()
    for number, step in enumerate(_steps()):
        world.settle()
        step(world)
        if number == lost_write:
            before = copy.deepcopy(world.job)
            world.reconcile()
            world.load(before)
    world.settle()
    assert world.status["phase"] == "Succeeded"
    assert {stage["attempt"] for stage in world.status["stages"]} == {1}
    assert world.status["restarts"] == 0
    assert world.names("Job") == [f"glossary-{stage}-1" for stage in sorted(ORDER)]


@pytest.mark.parametrize("crash", range(9))
def test_an_operator_that_crashes_between_two_creates_creates_the_rest(crash: int) -> None:
    world = World()
    for number, step in enumerate(_steps()):
        if number == crash:
            decision = reconcile_job(world.job, world, SETTINGS, world.now)
            for manifest in decision.create[:1]:
                world.create(manifest)
        world.settle()
        step(world)
    world.settle()
    assert world.status["phase"] == "Succeeded"
    assert {stage["attempt"] for stage in world.status["stages"]} == {1}


def test_pods_may_be_deleted_when_their_stage_has_succeeded() -> None:
    world = World()
    world.run_until("export")
    for stage in ("prepare", "train", "evaluate"):
        for pod in world.pods(f"glossary-{stage}-1"):
            world.remove_pod(pod)
    world.run_stage("export")
    assert world.status["probe"]["answer"] == "Eight bits."
    assert world.stage("train")["attempt"] == 1


def _children_gone(world: World) -> None:
    for kind in ("Job", "Pod", "ConfigMap", "Service"):
        for name in world.names(kind):
            world.remove(kind, name)


def _profile_gone(world: World) -> None:
    world.remove("AcceleratorProfile", "cpu")


def _spec_edited(world: World) -> None:
    world.edit(training={"epochs": 9})


@pytest.mark.parametrize("happens", [_children_gone, _profile_gone, _spec_edited])
@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_finished_job_never_runs_again(phase: str, happens: Callable[[World], None]) -> None:
    """An edit that the API server let through is observed and changes nothing."""
    world = World(job_manifest(serve=None))
    if phase == "Succeeded":
        world.run_until("end")
    else:
        world.settle()
        (pod,) = world.add_pods("glossary-prepare-1")
        world.end_pod(pod, 64, failed("prepare", "BrokenRow"))
        world.settle()
    before = world.status
    assert before["phase"] == phase
    happens(world)
    world.tick(1000)
    seen = world.reconcile().status
    assert replace(world.decision, status=None) == Decision()
    if happens is not _spec_edited:
        assert seen is None
        return
    conditions = [{**each, "observedGeneration": 2} for each in before["conditions"]]
    assert world.status == {**before, "observedGeneration": 2, "conditions": conditions}


def test_a_job_that_is_being_deleted_gets_no_children() -> None:
    world = World()
    world.mark_terminating(world.job)
    assert world.reconcile() == Decision()


def test_workspace_claim_is_created_once_and_has_no_owner() -> None:
    world = World()
    first = world.reconcile().create[0]
    assert (first["kind"], first["metadata"]["name"]) == (
        "PersistentVolumeClaim",
        "finetune-workspace",
    )
    assert first["spec"]["accessModes"] == ["ReadWriteMany"]
    assert "ownerReferences" not in first["metadata"]
    world.run_until("train")
    assert world.names("PersistentVolumeClaim") == ["assets", "finetune-workspace"]


def test_status_that_cannot_be_read_is_derived_from_the_children() -> None:
    world = World()
    world.run_until("evaluate")
    world.load({**world.job, "status": {"phase": "Dancing", "stages": 7}})
    world.settle()
    assert world.status["phase"] == "Evaluating"
    assert world.status["plan"]["strategy"] == "ZeRO2"


def test_spec_that_this_operator_cannot_read_stalls_and_names_the_field() -> None:
    world = World()
    world.edit(training={"quantum": True})
    world.settle()
    assert world.condition("Stalled")["reason"] == "InvalidSpec"
    assert "spec.training.quantum" in world.status["message"]
    assert world.names("Job") == []


def test_progress_is_polled_from_index_0_and_shown() -> None:
    world = World()
    world.run_until("train")
    pods = world.add_pods("glossary-train-1")
    decision = world.settle()
    (request,) = decision.requests
    assert request.id == f"progress/{pods[0]['metadata']['uid']}"
    assert request.url == "http://10.0.0.7:9400/progress"
    assert decision.requeue_after == SETTINGS.progress_interval
    assert world.status["progress"]["totalSteps"] == 30
    assert world.status["message"] == "train is running on 2 x 1 cpu with ZeRO2"


NAN = json.dumps(
    {
        **json.loads(result("prepare")),
        "train": {"steps": 1, "finalLoss": math.nan, "worldSize": 1, "engine": "DDP"},
    }
)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("", "nothing"),
        ("Traceback (most recent call last)", "text"),
        ("[]", "another type"),
        (result("export"), "another stage's result"),
        (NAN, "a number that no status can hold"),
        (json.dumps({"stage": "prepare", "attempt": 1, "outcome": "Succeeded"}), "no facts"),
    ],
)
def test_success_without_a_readable_result_is_tried_again(message: str, why: str) -> None:
    world = World()
    world.settle()
    (pod,) = world.add_pods("glossary-prepare-1")
    world.end_pod(pod, 0, message)
    world.settle()
    assert world.status["failure"]["reason"] == "NoResult", why
    assert world.status["restarts"] == 1


def test_the_plan_is_made_before_any_training_pod_and_a_refusal_ends_the_job() -> None:
    world = World()
    world.add_profile("cpu", {"devicesPerNode": 1, "memoryPerDevice": "1Gi", "cpuPerDevice": "1"})
    world.run_until("train")
    status = world.status
    assert status["phase"] == "Failed"
    assert status["failure"]["reason"] == "DoesNotFit"
    assert status["failure"]["stage"] == "train"
    assert "1.0 GiB" in status["failure"]["message"]
    assert world.names("Job") == ["glossary-prepare-1"]
    assert world.condition("Succeeded")["reason"] == "DoesNotFit"


def test_a_gate_that_does_not_hold_ends_the_job_and_keeps_the_figures() -> None:
    world = World()
    world.run_until("evaluate")
    world.add_pods("glossary-evaluate-1")
    rule = {
        "metric": "loss",
        "unit": "Percent",
        "required": 30,
        "measured": 22.2,
        "low": 20.1,
        "high": 24.3,
        "passed": False,
    }
    evaluation = {
        **json.loads(result("evaluate"))["evaluation"],
        "gate": [rule],
        "passed": False,
    }
    world.succeed("evaluate", evaluation=evaluation)
    world.settle()
    status = world.status
    assert status["phase"] == "Failed"
    assert status["failure"]["reason"] == "GateNotMet"
    assert status["failure"]["message"].splitlines() == [
        "the tuned model fails 1 of 1 rules of evaluation.gate (held-out loss):",
        "metric  baseline  required         measured  95 % interval   result",
        "loss    base      bound of 30.0 %  22.2 %    20.1 to 24.3 %  failed",
    ]
    assert status["message"].splitlines()[-1].startswith("(Read the answers")
    assert status["evaluation"]["comparisons"][0]["tuned"] == 2.845
    assert "glossary-export-1" not in world.names("Job")


def test_a_gate_failure_that_came_as_an_error_keeps_the_figures_too() -> None:
    world = World()
    world.run_until("evaluate")
    (pod,) = world.add_pods("glossary-evaluate-1")
    message = json.loads(failed("evaluate", "GateNotMet"))
    rule = {"metric": "loss", "unit": "Nats", "required": 1, "measured": 0.5, "passed": False}
    evaluation = json.loads(result("evaluate"))["evaluation"]
    message["evaluation"] = {**evaluation, "gate": [rule], "passed": False}
    world.end_pod(pod, 64, json.dumps(message))
    world.settle()
    assert world.status["phase"] == "Failed"
    assert world.status["failure"]["reason"] == "GateNotMet"
    # The pod's message may be cut, and follows from the figures.
    table = world.status["failure"]["message"].splitlines()
    expected = "loss base bound of 1.0000 nats 0.5000 nats failed"
    assert table[-1].split() == expected.split()
    assert world.status["evaluation"]["comparisons"][0]["value"] == 3.656


def test_the_time_of_a_condition_moves_only_with_its_status() -> None:
    world = World()
    world.run_until("train")
    before = {each["type"]: each for each in world.status["conditions"]}
    world.add_pods("glossary-train-1")
    world.tick(60)
    world.settle()
    after = {each["type"]: each for each in world.status["conditions"]}
    assert after["Prepared"]["lastTransitionTime"] == before["Prepared"]["lastTransitionTime"]
    assert after["Reconciling"]["reason"] != before["Reconciling"]["reason"]
    assert after["Reconciling"]["lastTransitionTime"] == before["Reconciling"]["lastTransitionTime"]
