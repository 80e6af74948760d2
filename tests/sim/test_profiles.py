"""How often the operator writes the status of a profile while many jobs start."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from finetune_operator.controllers import build_controllers
from finetune_operator.decision import Manifest, Settings

from tests.sim.clock import Clock, running
from tests.sim.operators import Operator
from tests.sim.server import ApiServer
from tests.unit.jobs.world import CPU_PROFILE

GROUP = "finetune.dev/v1alpha1"
JOBS = 100


class World:
    """A server with one profile, and an operator that reconciles nothing but profiles."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.server = ApiServer(clock)
        self.writes = 0
        self.server.listeners.append(lambda _what, new, _old: self._count(new))
        table = build_controllers(Settings("trainer", "serving"))
        rest = {kind: lambda _key, _view, _now: None for kind in table.reconcile}
        reconcile = rest | {"AcceleratorProfile": table.reconcile["AcceleratorProfile"]}
        self.operator = Operator(
            "one",
            self.server,
            clock,
            replace(table, reconcile=reconcile, initial_keys=lambda _view: ()),
            lambda _: None,
            lambda _: None,
        )
        self.operator.start()
        meta = {"namespace": "", "name": "cpu"}
        self.create("AcceleratorProfile", meta, CPU_PROFILE | {"default": True})
        self.wait(10.0)

    def create(self, kind: str, metadata: Manifest, spec: Manifest) -> None:
        made = {"apiVersion": GROUP, "kind": kind, "metadata": metadata, "spec": spec}
        self.server.create(made)

    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds, self.operator.pump)

    @property
    def jobs(self) -> int:
        profile = self.server.get("AcceleratorProfile", "", "cpu")
        return int(profile["status"]["jobs"])

    def _count(self, manifest: Manifest) -> None:
        self.writes += manifest["kind"] == "AcceleratorProfile"


@pytest.fixture
def world() -> Iterator[World]:
    clock = Clock()
    with running(clock):
        yield World(clock)


def test_many_jobs_in_a_short_time_cost_few_writes(world: World) -> None:
    before = world.writes
    for number in range(JOBS):
        world.create("FineTuneJob", {"namespace": "default", "name": f"j{number}"}, {})
        world.wait(0.1)
    world.wait(5.0)
    assert world.jobs == JOBS
    assert world.writes - before <= 8, "10 s"
    assert world.writes - before >= 3, "the status does not lag for long"
