"""What an endpoint reports when it waits or fails, and that it continues by itself."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.decision import EventRecord
from finetune_operator.endpoints.plan import build_rejected_endpoint_status
from finetune_operator.resources.janitor import build_janitor_job

from tests.unit.endpoints.scenarios import answer_checks, start_checks, start_pods
from tests.unit.endpoints.world import (
    ANSWER,
    GPU_PROFILE,
    NAME,
    NAMESPACE,
    World,
    artifact,
    endpoint,
    profile,
)

CRASH = {
    "reason": "Error",
    "exitCode": 1,
    "message": "(EngineCore pid=31) ERROR ValueError: max_model_len 4096 is too long\n"
    "RuntimeError: Engine core initialization failed. See root cause above.\n",
}
OUT_OF_MEMORY = {"reason": "OOMKilled", "exitCode": 137}


def test_a_missing_profile_is_named_and_waited_for() -> None:
    world = World(endpoint(profile="h100"))
    world.settle()
    assert world.status["phase"] == "Pending"
    assert world.condition("Stalled") == ("True", "ProfileNotFound")
    assert world.status["message"] == (
        "AcceleratorProfile h100 does not exist; this continues when it is created"
    )
    assert world.status["revisions"] == []
    world.load(profile("h100", **GPU_PROFILE))
    world.roll_out()
    assert world.condition("Stalled") == ("False", "Clear")


def test_an_artifact_missing_from_the_list_of_a_running_janitor_waits_for_its_end() -> None:
    world = World()
    janitor = build_janitor_job(NAMESPACE, "uid", [], frozenset(), world.now, world.settings)
    world.load(janitor)
    world.settle()
    assert world.condition("Stalled") == ("True", "WaitingForJanitor")
    assert world.names("Deployment") == []
    world.remove("Job", janitor["metadata"]["name"])
    world.roll_out()
    assert world.condition("Stalled") == ("False", "Clear")


NO_DEFAULT = "no AcceleratorProfile is marked as default; mark one, or name one in spec.profile"
AMBIGUOUS = (
    "AcceleratorProfiles cpu, h100 are all marked as default; leave the mark on one, or name one "
    "in spec.profile"
)
TOO_MANY = "spec.gpus is 16, but a node of AcceleratorProfile h100 has 8 devices"


@pytest.mark.parametrize(
    ("spec", "profiles", "reason", "message"),
    [
        pytest.param(
            {}, [profile(default=False)], "ProfileNotFound", NO_DEFAULT, id="no default profile"
        ),
        pytest.param(
            {},
            [profile("h100", **{**GPU_PROFILE, "default": True})],
            "ProfileAmbiguous",
            AMBIGUOUS,
            id="two default profiles",
        ),
        pytest.param(
            {"profile": "h100", "gpus": 16},
            [profile("h100", **GPU_PROFILE)],
            "TooManyDevices",
            TOO_MANY,
            id="more GPUs than a node has",
        ),
        *(
            pytest.param(
                {"artifact": {**artifact("a"), "uri": f"pvc://finetune-workspace/{path}"}},
                [],
                "InvalidArtifact",
                f"spec.artifact.uri 'pvc://finetune-workspace/{path}' must be "
                "pvc://claim/folder without '.' or '..' in it",
                id=f"artifact at {path}",
            )
            for path in ("../other", "a/../../b", "a//b", ".")
        ),
    ],
)
def test_a_spec_that_cannot_be_served_is_stalled_and_starts_nothing(
    spec: dict[str, Any], profiles: list[dict[str, Any]], reason: str, message: str
) -> None:
    world = World(endpoint(**spec))
    for each in profiles:
        world.load(each)
    world.settle()
    assert world.condition("Stalled") == ("True", reason)
    assert world.status["message"] == message
    assert world.names("Deployment") == []


def test_a_deleted_profile_does_not_affect_the_active_revision() -> None:
    world = World()
    world.roll_out()
    writes = world.writes
    world.remove("AcceleratorProfile", "cpu")
    world.settle()
    assert world.writes == writes
    world.edit(artifact=artifact("b"))
    world.settle()
    assert world.status["phase"] == "Ready"
    assert world.condition("Ready") == ("True", "RevisionActive")
    assert world.condition("Stalled") == ("True", "ProfileNotFound")


def unscheduled(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    return {"conditions": [{**condition, "message": message}]}


def waiting(reason: str) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": "vllm:v1 not found"}}
    return {"containerStatuses": [{"name": "vllm", "restartCount": 0, "state": state}]}


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        (
            unscheduled("0/2 nodes are available: 2 Insufficient nvidia.com/gpu."),
            "Unschedulable",
            "2 Insufficient nvidia.com/gpu",
        ),
        (
            unscheduled('0/2 nodes are available: persistentvolumeclaim "models" not found.'),
            "ClaimNotFound",
            "PersistentVolumeClaim 'models' does not exist",
        ),
        *(
            (waiting(reason), reason, f"{reason}: vllm:v1 not found")
            for reason in ("ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError")
        ),
    ],
)
def test_a_pod_that_cannot_start_is_stalled_without_a_limit_until_it_starts(
    status: dict[str, Any], reason: str, message: str
) -> None:
    world = start_pods()
    world.change("Pod", "glossary-r1-0", {"status": status})
    world.settle()
    assert world.condition("Stalled") == ("True", reason)
    assert message in world.status["message"]
    assert world.condition("Reconciling") == ("False", "Settled")
    world.tick(7 * 24 * 3600)
    world.settle()
    assert world.states() == {1: "Starting"}
    world.roll_out()
    assert world.condition("Stalled") == ("False", "Clear")


def test_a_quota_that_allows_no_pod_is_reported() -> None:
    world = World()
    world.settle()
    failure = {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreate",
        "message": "exceeded quota: gpus",
    }
    world.change("Deployment", "glossary-r1", {"status": {"conditions": [failure]}})
    world.settle()
    assert world.condition("Stalled") == ("True", "FailedCreate")
    assert world.status["message"].endswith("no pod can be created: exceeded quota: gpus")


def test_a_crash_loop_is_stalled_after_two_restarts() -> None:
    world = start_pods()
    backing_off = {"reason": "CrashLoopBackOff", "message": "back-off 20s"}
    world.set_container("glossary-r1-0", restarts=2, waiting=backing_off, last=CRASH)
    world.settle()
    assert world.condition("Stalled") == ("True", "CrashLoopBackOff")
    assert world.states() == {1: "Starting"}
    assert world.names("Deployment") == ["glossary-r1"]


@pytest.mark.parametrize(
    "state", [{"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}, {"running": {}}]
)
@pytest.mark.parametrize(
    ("last", "reason", "detail"),
    [
        (CRASH, "CrashLoop", "Error (exit code 1): ValueError: max_model_len 4096 is too long"),
        (
            OUT_OF_MEMORY,
            "OOMKilled",
            "OOMKilled (exit code 137): raise hostMemoryPerDevice in the AcceleratorProfile, or "
            "limitsPerDevice.memory if it is set",
        ),
    ],
)
def test_three_restarts_fail_the_revision_with_the_last_error(
    last: dict[str, Any], reason: str, detail: str, state: dict[str, Any]
) -> None:
    world = start_pods()
    world.set_container("glossary-r1-0", restarts=3, last=last, **state)
    world.settle()
    assert world.states() == {1: "Failed"}
    retry = "; next try at 2026-11-21T12:01:00Z" if reason == "CrashLoop" else ""
    assert world.condition("Reconciling" if retry else "Stalled") == ("True", reason)
    assert world.condition("Stalled" if retry else "Reconciling")[0] == "False"
    assert world.status["phase"] == ("Deploying" if retry else "Failed")
    assert world.status["message"] == (
        f"revision 1 failed: {reason}: container vllm of pod glossary-r1-0 ended 3 times, last "
        f"with {detail}{retry}"
    )
    assert world.names("Deployment") == []
    assert [event.reason for event in world.events] == ["RevisionStarting", "RevisionFailed"]
    assert world.find("Service", NAME) is None


def test_a_sidecar_neither_fails_a_revision_nor_counts_as_its_start() -> None:
    world = start_pods()
    sidecar = {
        "name": "istio-proxy",
        "restartCount": 30,
        "state": {"running": {"startedAt": world.time()}},
        "lastState": {"terminated": CRASH},
    }
    server = {
        "name": "vllm",
        "restartCount": 0,
        "state": {"waiting": {"reason": "PodInitializing"}},
    }
    for statuses in (
        {"initContainerStatuses": [sidecar]},
        {"containerStatuses": [sidecar, server]},
    ):
        world.change("Pod", "glossary-r1-0", {"status": statuses})
        world.settle()
        world.tick(7200)
        world.settle()
        assert world.states() == {1: "Starting"}


def test_crashes_never_fail_the_active_revision() -> None:
    world = World()
    world.roll_out()
    backing_off = {"reason": "CrashLoopBackOff", "message": "back-off 5m"}
    world.set_container("glossary-r1-0", restarts=30, waiting=backing_off, last=CRASH)
    world.set_pod_ready("glossary-r1-0", ready=False)
    world.settle()
    assert world.states() == {1: "Active"}
    assert world.condition("Ready") == ("False", "PodsNotReady")
    assert world.condition("Stalled") == ("True", "CrashLoopBackOff")
    assert world.names("Deployment") == ["glossary-r1"]


def test_a_revision_fails_30_minutes_after_the_start_of_its_container() -> None:
    world = start_pods()
    world.tick(3600)
    world.set_container("glossary-r1-0", running={"startedAt": "2026-11-21T13:00:00Z"})
    world.settle()
    assert world.requeue_after == 1800
    world.tick(1799)
    world.settle()
    assert world.states() == {1: "Starting"}
    world.tick(1)
    world.settle()
    assert world.status["message"] == (
        "revision 1 failed: StartTimeout: no answer 30 minutes after the start of the container"
    )


@pytest.mark.parametrize(
    "reply", [{"error": "ClientConnectorError: no route"}, {"status": 503}, {"status": 429}]
)
def test_an_unreachable_pod_is_retried_and_stalled_after_a_minute(reply: dict[str, Any]) -> None:
    world = start_checks()
    world.settle()
    world.answer_requests(**reply)
    world.settle()
    assert "does not answer /v1/models" in world.status["message"]
    assert len(world.requests) == 1
    assert world.requests[0].interval == 2
    assert world.condition("Stalled") == ("False", "Clear")
    world.tick(60)
    world.settle()
    assert world.condition("Stalled") == ("True", "NoAnswer")
    assert world.states() == {1: "Checking"}
    world.responses.clear()
    world.roll_out()


def test_pods_that_became_ready_while_no_operator_ran_are_checked_before_they_are_stalled() -> None:
    world = start_checks()
    world.tick(24 * 3600)
    world.settle()
    assert world.condition("Stalled") == ("False", "Clear")
    assert world.states() == {1: "Checking"}
    world.roll_out()


def test_a_rejected_probe_fails_the_revision_with_the_error_of_vllm() -> None:
    world = start_checks()
    world.settle()
    world.answer_requests()
    for _ in range(3):
        world.settle()
        world.answer_requests(status=400)
    world.settle()
    assert world.condition("Stalled") == ("True", "ProbeRefused")
    assert "HTTP 400: no" in world.status["message"]


@pytest.mark.parametrize(
    ("answer", "state"), [(f"{ANSWER} \n", "Active"), (f" {ANSWER}", "Failed")]
)
def test_only_white_space_at_the_end_of_an_answer_is_ignored(answer: str, state: str) -> None:
    world = start_checks()
    answer_checks(world, answer)
    assert world.states() == {1: state}


def test_a_restarted_container_is_checked_again() -> None:
    world = start_checks()
    world.settle()
    world.answer_requests()
    before = {request.id for request in world.requests}
    world.set_container("glossary-r1-0", restarts=1, running={})
    world.settle()
    assert before.isdisjoint(request.id for request in world.requests)


def test_an_invalid_spec_is_reported_and_leaves_the_children_alone() -> None:
    world = World()
    world.roll_out()
    writes = world.writes
    world.edit(replicas="many")
    world.settle()
    assert world.writes == writes + 1
    assert world.condition("Stalled") == ("True", "InvalidSpec")
    assert world.condition("Ready") == ("True", "RevisionActive")
    assert world.status["message"].startswith("spec.replicas: ")
    assert world.status["activeRevision"] == 1


def test_a_status_of_another_version_is_rewritten_and_leaves_the_children_alone() -> None:
    world = World()
    world.roll_out()
    before, events = world.status, len(world.events)
    unknown = {**before["revisions"][0], "state": "Mirrored"}
    world.change("ModelEndpoint", NAME, {"status": {"revisions": [unknown]}})
    writes = world.writes
    world.settle()
    assert world.writes == writes + 1
    assert (world.status["phase"], world.states()) == ("Ready", {1: "Active"})
    assert world.condition("Stalled") == ("False", "Clear")
    assert "InvalidSpec" not in [each.reason for each in world.events[events:]]


def test_a_stall_is_one_event() -> None:
    world = World(endpoint(profile="h100"))
    world.settle()
    world.tick(60)
    world.settle()
    assert [(event.type, event.reason) for event in world.events] == [
        ("Warning", "ProfileNotFound")
    ]


def test_a_write_that_the_api_server_rejects_is_reported_and_the_endpoint_stays_ready() -> None:
    world = World()
    world.roll_out()
    why = EventRecord("Warning", "Forbidden", "exceeded quota: gpus")
    status = build_rejected_endpoint_status(world.need("ModelEndpoint", NAME), why, world.now)
    assert status is not None
    conditions = {each["type"]: (each["status"], each["reason"]) for each in status["conditions"]}
    assert conditions["Stalled"] == ("True", "Forbidden")
    assert conditions["Ready"] == ("True", "RevisionActive")
    assert status["message"] == "exceeded quota: gpus"
    assert status["activeRevision"] == 1


@pytest.mark.parametrize("written", ["", " ", "x" * 129, "two words", "\u2028" * 40_000])
def test_texts_of_other_components_stay_within_what_a_condition_holds(written: str) -> None:
    """A scheduler or an admission policy may write any text as reason and message."""
    world = start_pods()
    status = unscheduled(written)
    status["conditions"][0]["reason"] = written
    world.change("Pod", "glossary-r1-0", {"status": status})
    world.settle()
    assert world.condition("Stalled") == ("True", "Unschedulable")


def test_a_pod_that_waits_for_a_new_node_is_no_stall_while_an_autoscaler_may_add_it() -> None:
    world = start_pods()
    status = unscheduled("0/2 nodes are available: 2 Insufficient nvidia.com/gpu.")
    status["conditions"][0]["lastTransitionTime"] = world.time()
    world.change("Pod", "glossary-r1-0", {"status": status})
    world.settle()
    assert world.condition("Reconciling") == ("True", "Unschedulable")
    assert world.condition("Stalled") == ("False", "Clear")
    assert "2 Insufficient nvidia.com/gpu" in world.status["message"]
    assert world.decide().requeue_after == 600
    world.tick(600)
    world.settle()
    assert world.condition("Reconciling") == ("False", "Settled")
    assert world.condition("Stalled") == ("True", "Unschedulable")


def test_a_replica_more_that_waits_for_a_new_node_is_no_stall_either() -> None:
    world = World()
    world.roll_out()
    world.edit(replicas=2)
    world.settle()
    _, name = world.add_pods(1, 2)
    status = unscheduled("0/2 nodes are available")
    status["conditions"][0]["lastTransitionTime"] = world.time()
    world.change("Pod", name, {"status": status})
    world.settle()
    assert world.status["phase"] == "Ready"
    assert world.condition("Reconciling") == ("True", "Unschedulable")
    world.tick(world.decide().requeue_after or 0.0)
    world.settle()
    assert world.condition("Stalled") == ("True", "Unschedulable")


@pytest.mark.parametrize("time", ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "soon"])
def test_a_scheduler_may_write_any_time(time: str) -> None:
    world = start_pods()
    status = unscheduled("0/2 nodes are available")
    status["conditions"][0]["lastTransitionTime"] = time
    world.change("Pod", "glossary-r1-0", {"status": status})
    world.settle()
    assert "0/2 nodes are available" in world.status["message"]


def test_an_image_that_is_missing_is_reported_before_a_node_that_may_still_come() -> None:
    world = World()
    world.edit(replicas=2)
    world.settle()
    world.add_pods(1, 2)
    status = unscheduled("0/2 nodes are available")
    status["conditions"][0]["lastTransitionTime"] = world.time()
    world.change("Pod", "glossary-r1-0", {"status": status})
    world.change("Pod", "glossary-r1-1", {"status": waiting("ErrImagePull")})
    world.settle()
    assert world.condition("Stalled") == ("True", "ErrImagePull")
