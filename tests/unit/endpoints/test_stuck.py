"""What an endpoint says when it cannot go on, and that it goes on by itself."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.decision import EventRecord
from finetune_operator.endpoints.plan import refused_endpoint
from finetune_operator.resources.janitor import janitor_job

from tests.unit.endpoints.world import (
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


def started() -> World:
    world = World()
    world.settle()
    world.pods_appear(1)
    return world


def test_missing_profile_is_named_and_waited_for() -> None:
    world = World(endpoint(profile="h100"))
    world.settle()
    assert world.status["phase"] == "Pending"
    assert world.condition("Stalled") == ("True", "ProfileNotFound")
    assert world.status["message"] == (
        "AcceleratorProfile h100 does not exist; this goes on when it is created"
    )
    assert world.status["revisions"] == []
    world.put(profile("h100", **GPU_PROFILE))
    world.rolled_out()
    assert world.condition("Stalled") == ("False", "Clear")


def test_artifact_that_a_running_janitor_does_not_know_waits_for_it() -> None:
    world = World()
    cleaning = janitor_job(NAMESPACE, "uid", [], frozenset(), world.now, world.settings)
    world.put(cleaning)
    world.settle()
    assert world.condition("Stalled") == ("True", "WaitingForJanitor")
    assert world.names("Deployment") == []
    world.remove("Job", cleaning["metadata"]["name"])
    world.rolled_out()
    assert world.condition("Stalled") == ("False", "Clear")


def test_no_default_profile_says_what_to_do() -> None:
    world = World()
    world.change("AcceleratorProfile", "cpu", {"spec": {"default": False}}, namespace="")
    world.settle()
    assert world.status["message"] == (
        "no AcceleratorProfile is marked as default; mark one, or name one in spec.profile"
    )


def test_two_default_profiles_are_told_and_neither_is_guessed() -> None:
    world = World()
    world.put(profile("h100", **{**GPU_PROFILE, "default": True}))
    world.settle()
    assert world.condition("Stalled") == ("True", "ProfileAmbiguous")
    assert "cpu, h100" in world.status["message"]
    assert world.names("Deployment") == []


def test_more_gpus_than_a_node_has_are_refused_in_words() -> None:
    world = World(endpoint(profile="h100", gpus=16))
    world.put(profile("h100", **GPU_PROFILE))
    world.settle()
    assert world.condition("Stalled") == ("True", "TooManyDevices")
    assert "spec.gpus is 16" in world.status["message"]


def test_profile_that_vanishes_does_not_touch_what_runs() -> None:
    world = World()
    world.rolled_out()
    writes = world.writes
    world.cache.remove("AcceleratorProfile", "", "cpu", "uid-cpu")
    world.settle()
    assert world.writes == writes
    world.edit(artifact=artifact("b"))
    world.settle()
    assert world.status["phase"] == "Ready"
    assert world.condition("Ready") == ("True", "RevisionActive")
    assert world.condition("Stalled") == ("True", "ProfileNotFound")


@pytest.mark.parametrize("path", ["../other", "a/../../b", "a//b", "."])
def test_artifact_outside_its_claim_is_refused(path: str) -> None:
    world = World(endpoint(artifact={**artifact("a"), "uri": f"pvc://finetune-workspace/{path}"}))
    world.settle()
    assert world.condition("Stalled") == ("True", "InvalidArtifact")
    assert world.names("Deployment") == []


@pytest.mark.parametrize(
    ("condition", "reason", "words"),
    [
        (
            {
                "reason": "Unschedulable",
                "message": "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.",
            },
            "Unschedulable",
            "2 Insufficient nvidia.com/gpu",
        ),
        (
            {
                "reason": "Unschedulable",
                "message": '0/2 nodes are available: persistentvolumeclaim "models" not found.',
            },
            "ClaimNotFound",
            "PersistentVolumeClaim 'models' does not exist",
        ),
    ],
)
def test_pod_without_a_node_is_stalled_until_it_has_one(
    condition: dict[str, str], reason: str, words: str
) -> None:
    world = started()
    unscheduled = {"type": "PodScheduled", "status": "False", **condition}
    world.change("Pod", "glossary-r1-0", {"status": {"conditions": [unscheduled]}})
    world.settle()
    assert world.condition("Stalled") == ("True", reason)
    assert words in world.status["message"]
    assert world.condition("Reconciling") == ("False", "Settled")
    world.later(7 * 24 * 3600)
    world.settle()
    assert world.states() == {1: "Starting"}
    world.rolled_out()
    assert world.condition("Stalled") == ("False", "Clear")


@pytest.mark.parametrize(
    "reason", ["ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError"]
)
def test_container_that_cannot_start_is_stalled_with_the_kubelets_reason(reason: str) -> None:
    world = started()
    world.container_is("glossary-r1-0", waiting={"reason": reason, "message": "vllm:v1 not found"})
    world.settle()
    assert world.condition("Stalled") == ("True", reason)
    assert f"{reason}: vllm:v1 not found" in world.status["message"]
    world.rolled_out()


def test_quota_that_allows_no_pod_is_told() -> None:
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
    assert world.status["message"].endswith("no pod can be made: exceeded quota: gpus")


def test_two_crashes_are_stalled_and_the_third_fails_with_the_last_words() -> None:
    world = started()
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off 20s"}
    world.container_is("glossary-r1-0", restarts=2, waiting=waiting, last=CRASH)
    world.settle()
    assert world.condition("Stalled") == ("True", "CrashLoopBackOff")
    assert world.states() == {1: "Starting"}
    world.container_is("glossary-r1-0", restarts=3, waiting=waiting, last=CRASH)
    world.settle()
    assert world.states() == {1: "Failed"}
    assert world.status["message"] == (
        "revision 1 failed: CrashLoop: container vllm of pod glossary-r1-0 ended 3 times, last "
        "with Error (exit code 1): ValueError: max_model_len 4096 is too long"
    )
    assert world.names("Deployment") == []


def test_out_of_memory_says_what_to_do() -> None:
    world = started()
    world.container_is(
        "glossary-r1-0", restarts=3, running={}, last={"reason": "OOMKilled", "exitCode": 137}
    )
    world.settle()
    assert world.condition("Stalled") == ("True", "OOMKilled")
    assert "more hostMemoryPerDevice" in world.status["message"]


def test_crashes_of_the_active_revision_never_fail_it() -> None:
    world = World()
    world.rolled_out()
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off 5m"}
    world.container_is("glossary-r1-0", restarts=30, waiting=waiting, last=CRASH)
    world.pod_is("glossary-r1-0", ready=False)
    world.settle()
    assert world.states() == {1: "Active"}
    assert world.condition("Ready") == ("False", "PodsNotReady")
    assert world.condition("Stalled") == ("True", "CrashLoopBackOff")
    assert world.names("Deployment") == ["glossary-r1"]


def test_start_has_half_an_hour_from_the_start_of_the_container() -> None:
    world = started()
    world.later(3600)
    world.container_is("glossary-r1-0", running={"startedAt": "2026-11-21T13:00:00Z"})
    world.settle()
    assert world.requeue_after == 1800
    world.later(1799)
    world.settle()
    assert world.states() == {1: "Starting"}
    world.later(1)
    world.settle()
    assert world.status["message"] == (
        "revision 1 failed: StartTimeout: no answer 30 minutes after the start of the container"
    )


@pytest.mark.parametrize(
    "reply", [{"error": "ClientConnectorError: no route"}, {"status": 503}, {"status": 429}]
)
def test_silence_is_asked_again_and_told_after_a_minute(reply: dict[str, Any]) -> None:
    world = World()
    world.settle()
    world.pods_are_ready(1)
    world.settle()
    world.answer_asks(**reply)
    world.settle()
    assert "does not answer /v1/models" in world.status["message"]
    assert len(world.asks) == 1
    assert world.asks[0].interval == 2
    assert world.condition("Stalled") == ("False", "Clear")
    world.later(60)
    world.settle()
    assert world.condition("Stalled") == ("True", "NoAnswer")
    assert world.states() == {1: "Checking"}
    world.answers.clear()
    world.rolled_out()


def test_pods_that_were_ready_while_no_operator_ran_are_asked_first() -> None:
    world = World()
    world.settle()
    world.pods_are_ready(1)
    world.later(24 * 3600)
    world.settle()
    assert world.condition("Stalled") == ("False", "Clear")
    assert world.states() == {1: "Checking"}
    world.rolled_out()


def test_refused_probe_fails_with_what_the_model_said() -> None:
    world = World()
    world.settle()
    world.pods_are_ready(1)
    world.settle()
    world.answer_asks()
    for _ in range(3):
        world.settle()
        world.answer_asks(status=400)
    world.settle()
    assert world.condition("Stalled") == ("True", "ProbeRefused")
    assert "HTTP 400: no" in world.status["message"]


def test_white_space_at_the_end_of_an_answer_is_left_out() -> None:
    world = World()
    world.settle()
    world.pods_are_ready(1)
    for _ in range(4):
        world.settle()
        world.answer_asks(answer="A compiler translates programs. \n")
    world.settle()
    assert world.states() == {1: "Active"}


def test_white_space_at_the_beginning_counts() -> None:
    world = World()
    world.settle()
    world.pods_are_ready(1)
    for _ in range(6):
        world.settle()
        world.answer_asks(answer=" A compiler translates programs.")
    world.settle()
    assert world.states() == {1: "Failed"}


def test_restarted_container_is_asked_anew() -> None:
    world = World()
    world.settle()
    world.pods_are_ready(1)
    world.settle()
    world.answer_asks()
    before = {ask.id for ask in world.asks}
    world.container_is("glossary-r1-0", restarts=1, running={})
    world.settle()
    assert before.isdisjoint(ask.id for ask in world.asks)


def test_spec_that_cannot_be_read_is_told_and_nothing_is_touched() -> None:
    world = World()
    world.rolled_out()
    writes = world.writes
    world.edit(replicas="many")
    world.settle()
    assert world.writes == writes + 1
    assert world.condition("Stalled") == ("True", "InvalidSpec")
    assert world.condition("Ready") == ("True", "RevisionActive")
    assert world.status["message"].startswith("spec.replicas: ")
    assert world.status["activeRevision"] == 1


def test_status_that_cannot_be_read_is_told_anew_and_nothing_is_touched() -> None:
    world = World()
    world.rolled_out()
    before, told = world.status, len(world.events)
    odd = {**before["revisions"][0], "state": "Mirrored"}
    world.change("ModelEndpoint", NAME, {"status": {"revisions": [odd]}})
    writes = world.writes
    world.settle()
    assert world.writes == writes + 1
    assert (world.status["phase"], world.states()) == ("Ready", {1: "Active"})
    assert world.condition("Stalled") == ("False", "Clear")
    assert "InvalidSpec" not in [each.reason for each in world.events[told:]]


def test_stall_is_an_event_once() -> None:
    world = World(endpoint(profile="h100"))
    world.settle()
    world.later(60)
    world.settle()
    assert [(event.type, event.reason) for event in world.events] == [
        ("Warning", "ProfileNotFound")
    ]


def test_failure_is_one_event() -> None:
    world = started()
    world.container_is("glossary-r1-0", restarts=3, running={}, last=CRASH)
    world.settle()
    assert [event.reason for event in world.events] == ["RevisionStarting", "RevisionFailed"]
    assert world.get("Service", NAME) is None


def test_write_that_the_api_server_refuses_is_told_and_what_answers_stays_ready() -> None:
    world = World()
    world.rolled_out()
    why = EventRecord("Warning", "Forbidden", "exceeded quota: gpus")
    told = refused_endpoint(world.need("ModelEndpoint", NAME), why, world.now)
    assert told is not None
    states = {each["type"]: (each["status"], each["reason"]) for each in told["conditions"]}
    assert states["Stalled"] == ("True", "Forbidden")
    assert states["Ready"] == ("True", "RevisionActive")
    assert told["message"] == "exceeded quota: gpus"
    assert told["activeRevision"] == 1
