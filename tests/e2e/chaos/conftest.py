"""The arena, the table that its cases fill, and the seed of what is random in them."""

from __future__ import annotations

import os
import random
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from kubernetes import client

from hack.cluster import engine
from hack.cluster.layout import load_settings
from hack.demo.platform import RELEASE, ROOT, Platform
from tests.e2e.chaos.arena import OPERATORS, Arena
from tests.e2e.chaos.faults import profile_with
from tests.e2e.chaos.runs import EVERY, MEMORY, PROFILE, STEPS, write_rows
from tests.e2e.chaos.table import Table
from tests.e2e.chaos.watching import JobHistory
from tests.e2e.history import PodHistory

REPORT = ROOT / "chaos-report.md"
SEED = int(os.environ.get("FINETUNE_CHAOS_SEED", str(random.SystemRandom().randrange(10**6))))


@pytest.fixture(scope="session")
def table(running: Platform) -> Table:
    grace = load_settings()["grace"]
    return Table(
        f"Two nodes that are declared dead after {grace:g} s without a heartbeat and whose pods "
        f"are evicted 5 s later (by default 50 s and 30 s). {OPERATORS} operators. Two pods of one "
        f"process train the tiny model for {STEPS} steps with a checkpoint every {EVERY}; seed "
        f"{SEED}."
    )


@pytest.fixture(scope="session")
def arena_of_all(
    running: Platform, core: client.CoreV1Api, history: PodHistory, table: Table
) -> Iterator[Arena]:
    running.system.run("scale", f"deployment/{RELEASE}", f"--replicas={OPERATORS}")
    write_rows(running.assets / "data" / "chaos.jsonl")
    watching = JobHistory(client.CustomObjectsApi(core.api_client))
    with profile_with(running.kubectl, PROFILE, hostMemoryPerDevice=MEMORY), watching as jobs:
        arena = Arena(running, engine.choose(), jobs, history, table)
        arena.train_undisturbed()
        yield arena
    table.write(REPORT)


@pytest.fixture
def arena(arena_of_all: Arena) -> Iterator[Arena]:
    """The arena in a steady state; the jobs of the case go when it ends."""
    arena_of_all.steady()
    yield arena_of_all
    arena_of_all.clean()


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers that follow from the seed and the name of the case."""
    return random.Random(f"{SEED}/{request.node.name}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the evidence of a case that failed, before its jobs are deleted."""
    report = yield
    arena = getattr(item, "funcargs", {}).get("arena")
    if report.when == "call" and report.failed and arena is not None:
        arena.keep_evidence(item.name)
    return report
