from __future__ import annotations

import pytest
from finetune_operator.decision import (
    ATTEMPT_LABEL,
    ENDPOINT_LABEL,
    JOB_NAME_LABEL,
    JOB_UID_LABEL,
    Key,
    Manifest,
)
from finetune_operator.engine.cache import Cache
from finetune_operator.engine.event_handlers import EventHandlers, keys_of
from finetune_operator.engine.metrics import Metrics
from finetune_operator.engine.workqueue import WorkQueue


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


class Gang:
    """Two pods of one attempt, as watches bring them."""

    def __init__(self) -> None:
        metrics = Metrics()
        self.cache = Cache()
        self.queue = WorkQueue(metrics.queue)
        self.intake = EventHandlers(self.cache, self.queue, metrics.handovers)
        self.job = Key("FineTuneJob", "ns", "waits")
        for name in ("p0", "p1"):
            self.intake.changed(self.pod(name, 1, "Running"))

    def pod(self, name: str, version: int, phase: str) -> Manifest:
        labels = {JOB_NAME_LABEL: "waits", JOB_UID_LABEL: "uid-waits", ATTEMPT_LABEL: "1"}
        made_so = made("Pod", name, phase, **labels)
        made_so["metadata"]["resourceVersion"] = str(version)
        return made_so

    def phases(self) -> dict[str, str]:
        """What a reconcile would see."""
        pods = self.cache.labelled("Pod", "ns", JOB_NAME_LABEL, "waits")
        return {pod["metadata"]["name"]: pod["status"]["phase"] for pod in pods}

    def reconcile(self) -> None:
        """A look that succeeds."""
        self.intake.seen(self.job, self.intake.leaving(self.job))


@pytest.fixture
def gang() -> Gang:
    return Gang()


def test_a_pod_whose_end_and_removal_come_as_one_is_seen_to_end(gang: Gang) -> None:
    gang.intake.removed(gang.pod("p0", 5, "Failed"))
    gang.intake.removed(gang.pod("p1", 6, "Failed"))
    assert gang.phases() == {"p0": "Failed", "p1": "Failed"}
    gang.reconcile()
    assert gang.phases() == {}
    assert gang.intake.leaving(gang.job) == ()


def test_last_words_are_kept_while_a_fellow_runs(gang: Gang) -> None:
    gang.intake.removed(gang.pod("p0", 5, "Failed"))
    gang.reconcile()
    assert gang.phases() == {"p0": "Failed", "p1": "Running"}
    gang.intake.removed(gang.pod("p1", 6, "Running"))
    assert gang.phases() == {"p0": "Failed"}
    gang.reconcile()
    assert gang.phases() == {}


def test_a_pod_that_went_without_a_word_is_gone_at_once(gang: Gang) -> None:
    gang.intake.removed(gang.pod("p0", 5, "Running"))
    assert gang.phases() == {"p1": "Running"}


def test_a_pod_that_a_list_does_not_show_any_more_is_not_kept(gang: Gang) -> None:
    gang.intake.removed(gang.pod("p0", 5, "Failed"))
    (gone,) = gang.intake.leaving(gang.job)
    gang.intake.removed(gone)
    gang.intake.removed(gang.pod("p1", 6, "Failed"))
    gang.reconcile()
    assert gang.phases() == {}
    assert gang.intake.leaving(gang.job) == ()
