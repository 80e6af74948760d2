from __future__ import annotations

import pytest
from finetune_operator.cache import Cache
from finetune_operator.decision import (
    ENDPOINT_LABEL,
    JOB_NAME_LABEL,
    JOB_UID_LABEL,
    Key,
    Manifest,
)
from finetune_operator.intake import keys_of


def made(kind: str, name: str, phase: str = "", endpoint: str = "", **labels: str) -> Manifest:
    manifest: Manifest = {
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
        manifest["spec"] = {"serve": {"endpoint": endpoint}}
    return manifest


@pytest.fixture
def cache() -> Cache:
    cache = Cache()
    cache.put(made("FineTuneJob", "waits", "Pending"))
    cache.put(made("FineTuneJob", "serves", "Deploying", endpoint="bot"))
    cache.put(made("FineTuneJob", "over", "Succeeded", endpoint="bot"))
    cache.put(made("ModelEndpoint", "bot"))
    return cache


WAITS = Key("FineTuneJob", "ns", "waits")
SERVES = Key("FineTuneJob", "ns", "serves")
BOT = Key("ModelEndpoint", "ns", "bot")
WORKSPACE = Key("Workspace", "ns", "finetune-janitor")


@pytest.mark.parametrize(
    ("manifest", "keys"),
    [
        (made("FineTuneJob", "waits", "Pending"), {WAITS}),
        (made("FineTuneJob", "waits"), {WAITS, WORKSPACE}),
        (made("FineTuneJob", "waits", "Failed"), {WAITS, WORKSPACE}),
        (made("ModelEndpoint", "bot"), {BOT, SERVES, WORKSPACE}),
        (made("AcceleratorProfile", "a100"), {WAITS, SERVES, BOT}),
        (made("PersistentVolumeClaim", "data"), {WAITS, SERVES, BOT, WORKSPACE}),
        (
            made("Pod", "p", **{JOB_NAME_LABEL: "waits", JOB_UID_LABEL: "uid-waits"}),
            {WAITS},
        ),
        (
            made("Job", "waits-train-1", **{JOB_NAME_LABEL: "waits", JOB_UID_LABEL: "uid-before"}),
            {WAITS, WORKSPACE},
        ),
        (made("Job", "finetune-janitor"), {WORKSPACE}),
        (made("Deployment", "bot-r1", **{ENDPOINT_LABEL: "bot"}), {BOT}),
        (made("Pod", "somebody's"), set()),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_news_wakes_those_who_may_want_something_else_now(
    cache: Cache, manifest: Manifest, keys: set[Key]
) -> None:
    assert set(keys_of(manifest, cache)) == keys
