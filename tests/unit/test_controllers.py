"""Which keys an object wakes when it is changed or deleted."""

from __future__ import annotations

import pytest
from finetune_operator.controllers import keys_of, keys_of_deleted
from finetune_operator.decision import (
    ENDPOINT_LABEL,
    JOB_NAME_LABEL,
    JOB_UID_LABEL,
    STAGE_LABEL,
    Key,
    Manifest,
)
from finetune_operator.engine.cache import Cache


def manifest(kind: str, name: str, phase: str = "", endpoint: str = "", **labels: str) -> Manifest:
    made: Manifest = {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {
            "namespace": "" if kind == "AcceleratorProfile" else "ns",
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": "1",
            "labels": labels,
        },
        "status": {"phase": phase},
    }
    if endpoint:
        made["spec"] = {"serve": {"endpoint": endpoint}}
    return made


@pytest.fixture
def cache() -> Cache:
    cache = Cache()
    cache.put(manifest("FineTuneJob", "waits", "Pending"))
    cache.put(manifest("FineTuneJob", "serves", "Deploying", endpoint="bot"))
    cache.put(manifest("FineTuneJob", "over", "Succeeded", endpoint="bot"))
    cache.put(manifest("ModelEndpoint", "bot"))
    cache.put(manifest("AcceleratorProfile", "cpu"))
    return cache


HANDED_OVER = manifest("FineTuneJob", "serves", "Deploying", endpoint="bot")
HANDED_OVER["status"]["stages"] = [{"name": "serve", "state": "Running", "attempt": 1}]
WAITS = Key("FineTuneJob", "ns", "waits")
SERVES = Key("FineTuneJob", "ns", "serves")
BOT = Key("ModelEndpoint", "ns", "bot")
CPU = Key("AcceleratorProfile", "", "cpu")
A100 = Key("AcceleratorProfile", "", "a100")
WORKSPACE = Key("Workspace", "ns", "finetune-janitor")


@pytest.mark.parametrize(
    ("changed", "keys"),
    [
        (manifest("FineTuneJob", "waits", "Pending"), {WAITS, CPU}),
        (manifest("FineTuneJob", "waits"), {WAITS, WORKSPACE, CPU}),
        (manifest("FineTuneJob", "waits", "Failed"), {WAITS, WORKSPACE, CPU}),
        (manifest("FineTuneJob", "serves", "Deploying", endpoint="bot"), {SERVES, CPU}),
        (HANDED_OVER, {SERVES, BOT, CPU}),
        (manifest("ModelEndpoint", "bot"), {BOT, SERVES, WORKSPACE, CPU}),
        (manifest("AcceleratorProfile", "a100"), {WAITS, SERVES, BOT, A100, CPU}),
        (manifest("PersistentVolumeClaim", "data"), {WAITS, SERVES, BOT, WORKSPACE}),
        (
            manifest("Pod", "p", **{JOB_NAME_LABEL: "waits", JOB_UID_LABEL: "uid-waits"}),
            {WAITS},
        ),
        (
            manifest(
                "Job", "waits-train-1", **{JOB_NAME_LABEL: "waits", JOB_UID_LABEL: "uid-before"}
            ),
            {WAITS, WORKSPACE},
        ),
        (manifest("Job", "finetune-janitor"), {WORKSPACE}),
        (manifest("Deployment", "bot-r1", **{ENDPOINT_LABEL: "bot"}), {BOT}),
        (manifest("Pod", "of-another-controller"), set()),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_an_object_wakes_the_keys_that_may_need_another_decision(
    cache: Cache, changed: Manifest, keys: set[Key]
) -> None:
    assert set(keys_of(changed, cache)) == keys


NAMED = {"spec": {"compute": {"profile": "cpu"}}}
TRAIN = {JOB_NAME_LABEL: "waits", STAGE_LABEL: "train"}
PLACED = {"spec": {"nodeName": "node1"}}


@pytest.mark.parametrize(
    ("old", "new", "keys"),
    [
        ({}, {"status": {"phase": "Training", "message": "step 2"}}, set()),
        ({}, NAMED, {CPU}),
        ({}, {"status": {"plan": {"profile": "cpu", "gpusPerNode": 8}}}, {CPU}),
        ({}, {"status": {"conditions": [{"type": "Succeeded", "status": "True"}]}}, {CPU}),
        (NAMED, NAMED | {"status": {"plan": {"profile": "cpu"}}}, set()),
    ],
)
def test_a_job_wakes_the_profiles_when_its_use_of_one_changes(
    cache: Cache, old: Manifest, new: Manifest, keys: set[Key]
) -> None:
    job = manifest("FineTuneJob", "waits", "Training")
    assert set(keys_of(job | new, cache, job | old)) - {WAITS, WORKSPACE} == keys


@pytest.mark.parametrize(
    ("old", "new", "keys"),
    [
        ({}, {}, set()),
        ({}, PLACED, {CPU}),
        (PLACED, PLACED, set()),
        (PLACED, PLACED | {"status": {"phase": "Failed"}}, {CPU}),
    ],
)
def test_a_training_pod_wakes_the_profiles_when_it_takes_or_gives_back_devices(
    cache: Cache, old: Manifest, new: Manifest, keys: set[Key]
) -> None:
    pod = manifest("Pod", "p", "Running", **TRAIN)
    assert set(keys_of(pod | new, cache, pod | old)) - {WAITS} == keys
    other = manifest("Pod", "p", **{JOB_NAME_LABEL: "waits"})
    assert set(keys_of(other | PLACED, cache, other)) == {WAITS}


def test_a_deleted_training_pod_wakes_the_profiles(cache: Cache) -> None:
    assert CPU in set(keys_of(manifest("Pod", "p", **TRAIN) | PLACED, cache))


def test_an_endpoint_wakes_the_profiles_when_it_is_new_or_moves(cache: Cache) -> None:
    endpoint = manifest("ModelEndpoint", "bot")
    moved = endpoint | {"spec": {"profile": "cpu"}}
    assert CPU not in set(keys_of(endpoint, cache, endpoint))
    assert CPU in set(keys_of(moved, cache, endpoint))


def test_a_status_of_a_profile_wakes_nothing_but_the_profile(cache: Cache) -> None:
    before = manifest("AcceleratorProfile", "cpu") | {"spec": {"default": False}}
    assert set(keys_of(before | {"status": {"jobs": 2}}, cache, before)) == {CPU}
    marked = before | {"spec": {"default": True}}
    assert set(keys_of(marked, cache, before)) == {CPU, WAITS, SERVES, BOT}


def test_a_deleted_job_wakes_its_workspace() -> None:
    assert list(keys_of_deleted(manifest("FineTuneJob", "waits", "Training"))) == [WORKSPACE]
    assert list(keys_of_deleted(manifest("ModelEndpoint", "bot"))) == []
