"""What the engine does when events and responses arrive in an unusual order."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import pytest
from finetune_operator.controllers import keys_of
from finetune_operator.decision import ControllerTable, Decision, EventRecord, Key, Manifest, View

from tests.sim.clock import Clock, running
from tests.sim.operators import Operator
from tests.sim.port import Fault
from tests.sim.server import ApiServer


def plan_toy(key: Key, view: View, _now: datetime) -> Decision | None:
    """A toy plan: a status, the event that reports it, and one child."""
    job = view.get(key.kind, key.namespace, key.name)
    if job is None:
        return None
    new = (job.get("status") or {}).get("phase") != "Preparing"
    return Decision(
        create=(child(job["metadata"]["uid"]),),
        status={"phase": "Preparing"},
        events=(EventRecord("Normal", "Preparing", "it starts"),) if new else (),
    )


def child(owner: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "namespace": "default",
            "name": "child",
            "labels": {"app.kubernetes.io/managed-by": "finetune-operator"},
            "ownerReferences": [{"kind": "FineTuneJob", "name": "a", "uid": owner}],
        },
    }


def finetune_job() -> Manifest:
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"namespace": "default", "name": "a"},
        "spec": {},
    }


class World:
    """A server, one operator, and the order of writes."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.server = ApiServer(clock)
        self.written: list[str] = []
        self.server.listeners.append(lambda what, new, _old: self._note(what, new))
        controllers = ControllerTable(
            reconcile={"FineTuneJob": plan_toy, "Workspace": lambda _key, _view, _now: None},
            on_rejected={
                "FineTuneJob": lambda _job, why, _now: {
                    "phase": "Preparing",
                    "message": why.reason,
                }
            },
            keys_of=keys_of,
        )
        self.operator = Operator(
            "one", self.server, clock, controllers, lambda _: None, lambda _: None
        )
        self.operator.start()

    def _note(self, what: str, manifest: Manifest) -> None:
        self.written.append(f"{what} {manifest['kind']}")

    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds, self.operator.pump)


@pytest.fixture
def world() -> Iterator[World]:
    clock = Clock()
    with running(clock):
        yield World(clock)


def test_a_watch_event_before_the_response_of_its_write_loses_no_event(world: World) -> None:
    world.operator.port.fault = Fault("late", calls=0, seconds=1.0)
    world.server.create(finetune_job())
    world.wait(5.0)
    assert [each["reason"] for each in world.server.list("Event")] == ["Preparing"]
    assert world.server.find("ConfigMap", "default", "child") is not None


@pytest.mark.parametrize("pause", [0.0, 60.0], ids=["at once", "later"])
def test_a_refusal_does_not_affect_a_later_object_of_that_name(world: World, pause: float) -> None:
    world.server.create(child("another-owner"))
    job = world.server.create(finetune_job())
    world.wait(5.0)
    refused = world.server.get("FineTuneJob", "default", "a")
    assert refused["status"]["message"] == "NameTaken"
    world.server.delete("FineTuneJob", "default", "a", job["metadata"]["uid"])
    world.server.delete("ConfigMap", "default", "child")
    world.wait(pause)
    world.written.clear()
    world.server.create(finetune_job())
    world.wait(120.0)
    order = [each for each in world.written if "Event" not in each]
    assert order == ["ADDED FineTuneJob", "MODIFIED FineTuneJob", "ADDED ConfigMap"]
