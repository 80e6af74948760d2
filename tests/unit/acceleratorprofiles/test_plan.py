"""The status of a profile: whether it can be used, and what uses it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from finetune_operator.acceleratorprofiles.plan import reconcile_profile
from finetune_operator.decision import Decision

from tests.unit.acceleratorprofiles.world import Pools, get_condition
from tests.unit.jobs.world import SETTINGS, job_manifest, training


def count(world: Pools, name: str = "cpu") -> tuple[int, int, int]:
    status = world.observe_profile(name)
    return status["jobs"], status["endpoints"], status["trainingDevices"]


def test_a_job_counts_from_its_creation_to_its_end() -> None:
    world = Pools(job_manifest(serve=None))
    assert count(world) == (1, 0, 0)
    world.run_until("end")
    assert world.status["phase"] == "Succeeded"
    assert count(world) == (0, 0, 0)


def test_devices_are_held_while_training_pods_have_nodes() -> None:
    world = Pools()
    _, pods = training(world)
    assert count(world) == (1, 0, 2)
    world.end_pod(pods[0], 1)
    assert count(world) == (1, 0, 1)
    world.remove_pod(pods[1])
    assert count(world) == (1, 0, 0)


def test_a_training_pod_without_a_node_holds_nothing() -> None:
    world = Pools()
    world.run_until("train")
    for pod in world.add_pods("glossary-train-1", "Pending"):
        world.load({**pod, "spec": {**pod["spec"], "nodeName": None}})
    assert count(world) == (1, 0, 0)


def test_pods_of_an_earlier_job_of_the_same_name_hold_nothing_of_the_later_one() -> None:
    world = Pools()
    _, pods = training(world)
    labels = {**pods[0]["metadata"]["labels"], "finetune.dev/job-uid": "another"}
    world.load({**pods[0], "metadata": {**pods[0]["metadata"], "labels": labels}})
    assert count(world) == (1, 0, 1)


def test_a_job_counts_for_the_profile_of_its_plan() -> None:
    world = Pools(job_manifest(compute={"nodes": 2, "strategy": "ZeRO2"}))
    world.remove("AcceleratorProfile", "cpu")
    world.add_pool("old", default=True)
    training(world)
    world.remove("AcceleratorProfile", "old")
    world.add_pool("old")
    world.add_pool("new", default=True)
    assert count(world, "old") == (1, 0, 2)
    assert count(world, "new") == (0, 0, 0)


def test_endpoints_count_for_their_profile_or_the_default() -> None:
    world = Pools()
    world.add_pool("gpu", default=True)
    world.add_endpoint("named", "cpu")
    for name in ("first", "second"):
        world.add_endpoint(name)
    assert count(world) == (1, 1, 0)
    assert count(world, "gpu") == (0, 2, 0)


def test_a_profile_is_ready_and_its_status_is_written_once() -> None:
    world = Pools()
    status = world.observe_profile()
    assert (status["observedGeneration"], status["message"]) == (1, "")
    assert get_condition(status, "Ready")["status"] == "True"
    assert get_condition(status, "Stalled")["status"] == "False"
    version = world.server.version
    world.tick(3600)
    assert world.observe_profile() == status
    assert world.server.version == version


def test_several_default_profiles_are_all_named() -> None:
    world = Pools(job_manifest(compute={"nodes": 2}))
    world.add_pool("a", default=True)
    world.add_pool("b", default=True)
    world.add_pool("c", default=True)
    for name in ("a", "b", "c"):
        status = world.observe_profile(name)
        for kind, value in (("Ready", "False"), ("Stalled", "True")):
            condition = get_condition(status, kind)
            assert (condition["status"], condition["reason"]) == (value, "ProfileAmbiguous")
            assert "AcceleratorProfiles a, b, c are all marked" in condition["message"]
        assert (status["message"], status["jobs"]) == (condition["message"], 0)
    assert get_condition(world.observe_profile(), "Ready")["status"] == "True"

    world.tick(60)
    world.remove("AcceleratorProfile", "b")
    world.remove("AcceleratorProfile", "c")
    status = world.observe_profile("a")
    assert get_condition(status, "Ready")["lastTransitionTime"] == world.time()
    assert (status["message"], status["jobs"]) == ("", 1)


def test_a_profile_that_this_version_cannot_read_is_not_ready() -> None:
    world = Pools()
    world.add_pool("odd", fromTheFuture=1)
    status = world.observe_profile("odd")
    assert get_condition(status, "Ready")["reason"] == "ProfileInvalid"
    assert "fromTheFuture" in status["message"]


@pytest.mark.parametrize("is_terminating", [False, True])
def test_only_an_operator_that_watches_all_namespaces_writes_the_status(
    is_terminating: bool,
) -> None:
    world = Pools()
    profile = world.need("AcceleratorProfile", "cpu")
    if is_terminating:
        profile = world.mark_terminating(profile)
    settings = replace(SETTINGS, watches_all_namespaces=is_terminating)
    assert reconcile_profile(profile, world, settings, world.now) == Decision()
