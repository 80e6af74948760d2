"""What must have happened at least once in a long run, so that its promises mean something."""

from __future__ import annotations

from collections.abc import Mapping

from tests.sim.history import BLOWS
from tests.sim.port import FAULTS

STATES = (
    "phase Suspended",
    "phase Succeeded",
    "phase Failed",
    "failed: BrokenRow",
    "failed: DeadlineExceeded",
    "resumed from a checkpoint",
    "saved before it stopped",
    "killed at the end of its grace",
    "node lost under a pod",
    "node excluded",
    "pod could not be scheduled",
    "train tried again",
    "watch missed news",
    "watch told late",
    "zombie trained beside its successor",
    "zombie was fenced",
    "call while the API server was away",
)


def missing(met: Mapping[str, int]) -> list[str]:
    """What never happened."""
    wanted = [
        *(f"blow: {blow}" for blow in BLOWS),
        *(f"call: {fault}" for fault in FAULTS),
        *STATES,
    ]
    return [each for each in wanted if not met.get(each)]
