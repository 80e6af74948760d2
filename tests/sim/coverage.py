"""What must have happened at least once in a long run, so that it proves something."""

from __future__ import annotations

from collections.abc import Mapping

from tests.sim.history import ACTIONS
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
    "sidecar ran on",
    "quota refused a pod",
    "refusal of a pod reported",
    "gang gave its devices back",
    "train tried again",
    "watch missed events",
    "watch delivered late",
    "zombie trained alongside its successor",
    "zombie was fenced",
    "call while the API server was down",
    "endpoint got a model",
    "endpoint got a newer model",
    "failed: Superseded",
    "janitor ran",
    "artifact removed",
)


def missing(met: Mapping[str, int]) -> list[str]:
    """What never happened."""
    wanted = [
        *(f"action: {action}" for action in ACTIONS),
        *(f"call: {fault}" for fault in FAULTS),
        *STATES,
    ]
    return [each for each in wanted if not met.get(each)]
