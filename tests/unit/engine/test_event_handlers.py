from __future__ import annotations

import pytest
from finetune_operator.controllers import keys_of
from finetune_operator.decision import (
    ATTEMPT_LABEL,
    JOB_NAME_LABEL,
    JOB_UID_LABEL,
    ControllerTable,
    Key,
    Manifest,
)
from finetune_operator.engine.cache import Cache
from finetune_operator.engine.event_handlers import EventHandlers
from finetune_operator.engine.metrics import Metrics
from finetune_operator.engine.workqueue import WorkQueue


class Gang:
    """Two pods of one attempt, as watches deliver them."""

    def __init__(self) -> None:
        metrics = Metrics()
        self.cache = Cache()
        self.queue = WorkQueue(metrics.queue)
        controllers = ControllerTable({}, {}, keys_of)
        self.event_handlers = EventHandlers(self.cache, self.queue, controllers, metrics.handovers)
        self.job = Key("FineTuneJob", "ns", "waits")
        for name in ("p0", "p1"):
            self.event_handlers.on_update(self.pod(name, 1, "Running"))

    def pod(self, name: str, version: int, phase: str) -> Manifest:
        labels = {JOB_NAME_LABEL: "waits", JOB_UID_LABEL: "uid-waits", ATTEMPT_LABEL: "1"}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": "ns",
                "name": name,
                "uid": f"uid-{name}",
                "resourceVersion": str(version),
                "labels": labels,
            },
            "status": {"phase": phase},
        }

    def phases(self) -> dict[str, str]:
        """The phases of the pods that a reconcile sees."""
        pods = self.cache.list_by_label("Pod", "ns", JOB_NAME_LABEL, "waits")
        return {pod["metadata"]["name"]: pod["status"]["phase"] for pod in pods}

    def reconcile(self) -> None:
        """A reconcile that succeeds."""
        pods = self.event_handlers.retained_pods(self.job)
        self.event_handlers.release_pods(self.job, pods)


@pytest.fixture
def gang() -> Gang:
    return Gang()


def test_a_pod_whose_end_and_deletion_come_as_one_event_is_seen_to_end(gang: Gang) -> None:
    gang.event_handlers.on_delete(gang.pod("p0", 5, "Failed"))
    gang.event_handlers.on_delete(gang.pod("p1", 6, "Failed"))
    assert gang.phases() == {"p0": "Failed", "p1": "Failed"}
    gang.reconcile()
    assert gang.phases() == {}
    assert gang.event_handlers.retained_pods(gang.job) == ()


def test_a_termination_message_is_kept_while_another_pod_of_the_attempt_runs(gang: Gang) -> None:
    gang.event_handlers.on_delete(gang.pod("p0", 5, "Failed"))
    gang.reconcile()
    assert gang.phases() == {"p0": "Failed", "p1": "Running"}
    gang.event_handlers.on_delete(gang.pod("p1", 6, "Running"))
    assert gang.phases() == {"p0": "Failed"}
    gang.reconcile()
    assert gang.phases() == {}


def test_a_pod_that_was_deleted_while_it_ran_is_removed_at_once(gang: Gang) -> None:
    gang.event_handlers.on_delete(gang.pod("p0", 5, "Running"))
    assert gang.phases() == {"p1": "Running"}


def test_a_retained_pod_that_a_list_does_not_contain_is_removed(gang: Gang) -> None:
    gang.event_handlers.on_delete(gang.pod("p0", 5, "Failed"))
    (retained,) = gang.event_handlers.retained_pods(gang.job)
    gang.event_handlers.on_delete(retained)
    gang.event_handlers.on_delete(gang.pod("p1", 6, "Failed"))
    gang.reconcile()
    assert gang.phases() == {}
    assert gang.event_handlers.retained_pods(gang.job) == ()
