"""A way in which the operator is broken, and the suites that detect one."""

from __future__ import annotations

from dataclasses import dataclass

JOBS = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "tests/unit/jobs")
WORKSPACES = (*JOBS[:-1], "tests/unit/workspaces")
PROFILES = (*JOBS[:-1], "tests/unit/acceleratorprofiles")
RESOURCES = (*JOBS[:-1], "tests/unit/resources", "tests/unit/planner", "tests/unit/jobs")
ENGINE = (*JOBS[:-1], "tests/unit/engine")
ENDPOINTS = (*JOBS[:-1], "tests/unit/endpoints")
FENCE = (*JOBS[:-1], "tests/api/engine/test_fence.py")
LEASE = (*JOBS[:-1], "tests/api/engine/test_leader_election.py")
LASTING = (*JOBS[:-1], "tests/api/engine/test_faults.py", "-k", "cannot_be_created")
CONTROLLERS = (*JOBS[:-1], "tests/unit/test_controllers.py")
SIMULATION = ("-m", "tests.sim", "--seed", "20261121", "--histories", "600")


@dataclass(frozen=True)
class Fault:
    """One way to be wrong."""

    name: str
    file: str
    """Below operator/finetune_operator."""
    right: str
    wrong: str
    suite: tuple[str, ...] = JOBS
