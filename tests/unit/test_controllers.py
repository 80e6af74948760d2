"""Which keys an object wakes when it is changed or deleted."""

from __future__ import annotations

import pytest
from finetune_operator.controllers import keys_of, keys_of_deleted
from finetune_operator.decision import (
    ENDPOINT_LABEL,
    JOB_NAME_LABEL,
    JOB_UID_LABEL,
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
    return cache


HANDED_OVER = manifest("FineTuneJob", "serves", "Deploying", endpoint="bot")
HANDED_OVER["status"]["stages"] = [{"name": "serve", "state": "Running", "attempt": 1}]
WAITS = Key("FineTuneJob", "ns", "waits")
SERVES = Key("FineTuneJob", "ns", "serves")
BOT = Key("ModelEndpoint", "ns", "bot")
WORKSPACE = Key("Workspace", "ns", "finetune-janitor")


@pytest.mark.parametrize(
    ("changed", "keys"),
    [
        (manifest("FineTuneJob", "waits", "Pending"), {WAITS}),
        (manifest("FineTuneJob", "waits"), {WAITS, WORKSPACE}),
        (manifest("FineTuneJob", "waits", "Failed"), {WAITS, WORKSPACE}),
        (manifest("FineTuneJob", "serves", "Deploying", endpoint="bot"), {SERVES}),
        (HANDED_OVER, {SERVES, BOT}),
        (manifest("ModelEndpoint", "bot"), {BOT, SERVES, WORKSPACE}),
        (manifest("AcceleratorProfile", "a100"), {WAITS, SERVES, BOT}),
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


def test_a_deleted_job_wakes_its_workspace() -> None:
    assert list(keys_of_deleted(manifest("FineTuneJob", "waits", "Training"))) == [WORKSPACE]
    assert list(keys_of_deleted(manifest("ModelEndpoint", "bot"))) == []
