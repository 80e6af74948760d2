"""Every state of an AcceleratorProfile that has a status."""

from __future__ import annotations

from typing import Any

from tests.unit.acceleratorprofiles.world import Pools
from tests.unit.gitops.cases import DEGRADED, HEALTHY, PROGRESSING, Cases, Recorded


class RecordedWorld(Recorded, Pools):
    """A profile, and every status that was written to it."""

    kind, name = "AcceleratorProfile", "pool"

    def __init__(self, **spec: Any) -> None:
        super().__init__()
        self.add_pool(self.name, **spec)


CASES = Cases(RecordedWorld)
expect = CASES.expect


@expect(HEALTHY)
def can_be_used(world: RecordedWorld) -> None:
    world.observe_profile("pool")


@expect(PROGRESSING)
def was_edited_after_its_status(world: RecordedWorld) -> None:
    world.observe_profile("pool")
    world.replace_fields(world.need("AcceleratorProfile", "pool"), {"maxNodes": 4})


@expect(DEGRADED, default=True)
def is_one_of_two_defaults(world: RecordedWorld) -> None:
    world.add_pool("other", default=True)
    world.observe_profile("pool")


@expect(HEALTHY, default=True)
def is_the_only_default_again(world: RecordedWorld) -> None:
    world.add_pool("other", default=True)
    world.observe_profile("pool")
    world.remove("AcceleratorProfile", "other")
    world.observe_profile("pool")


@expect(DEGRADED, fromTheFuture=1)
def cannot_be_read_by_this_version(world: RecordedWorld) -> None:
    world.observe_profile("pool")
