"""Gangs that hang, and what happens to others meanwhile: deleted, suspended, out of memory.

A stopped process looks like a slow one for minutes, so the two jobs whose ranks are stopped are
started first and looked at last; they keep no core busy.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from hack.demo.kubectl import Kubectl
from tests.e2e.chaos import faults
from tests.e2e.chaos.arena import Arena
from tests.e2e.chaos.judging import (
    add_row,
    assert_as_undisturbed,
    assert_lost_no_more_than_an_interval,
    assert_lost_nothing,
)
from tests.e2e.chaos.runs import Run, running

pytestmark = pytest.mark.long
HANGING = 700.0
"""Seconds until a stopped rank has been found and replaced."""
Hanging = dict[int, tuple[Run, float]]


@pytest.fixture(scope="module", autouse=True)
def hanging(arena_of_all: Arena) -> Iterator[Hanging]:
    """By the rank that is stopped in the middle of training: the job, and since when."""
    found: Hanging = {}
    with ExitStack() as stack:
        for rank in (0, 1):
            run = arena_of_all.start(f"stopped-{rank}", keep=True)
            run.until_step(12)
            at = stack.enter_context(faults.stopped_ranks(run.kubectl, run.pod(rank)))
            found[rank] = run, at
        yield found


def test_too_little_memory_ends_with_the_reason_and_a_remedy(
    arena: Arena, dice: random.Random
) -> None:
    """The first attempt has enough; it is deleted, and the limit is there for those after it."""
    with faults.profile_with(arena.kubectl, "chaos-small", hostMemoryPerDevice="150Mi") as profile:
        run = arena.start("oom", compute={"profile": profile}, maxRestarts=1)
        run.until_step(dice.randint(12, 28))
        with faults.memory_limit(run.kubectl, "200Mi"):
            at = faults.delete_pod(run.kubectl, run.pod(1))
            run.until_ended("Failed")
    failure = run.status["failure"]
    arena.table.add(run.row("killed for its memory (OOM)", at, "-", failure["remedy"]))
    assert failure["reason"] == "OutOfHostMemory"
    assert "hostMemoryPerDevice" in failure["remedy"]
    assert run.attempt == 3
    assert run.status["restarts"] == 1


def test_a_deleted_pod_costs_nothing(arena: Arena, dice: random.Random) -> None:
    run = arena.start("deleted")
    run.until_step(dice.randint(12, 28))
    rank = dice.choice((0, 1))
    at = faults.delete_pod(run.kubectl, run.pod(rank))
    run.until_ended()
    add_row(arena, run, f"pod of rank {rank} deleted", at)
    assert run.attempt == 2
    assert run.status.get("restarts", 0) == 0
    assert_lost_nothing(run)
    assert_as_undisturbed(arena, run)


def test_a_suspended_job_goes_on_where_it_was(arena: Arena, dice: random.Random) -> None:
    run = arena.start("suspended")
    run.until_step(dice.randint(12, 28))
    at = suspend(run.kubectl, run.name, True)
    run.until("the phase Suspended", lambda: run.phase == "Suspended")
    assert not running(run, 1), "a pod still runs"
    saved = run.status["checkpoint"]["step"]
    last = run.steps()[-1]
    again = suspend(run.kubectl, run.name, False)
    took = run.until_resumed(again)
    run.until_ended()
    add_row(arena, run, "suspended, then resumed", at, f"{took:.0f} s after it was resumed")
    assert saved == last.number
    assert run.attempt == 2
    assert run.status.get("restarts", 0) == 0
    assert_lost_nothing(run)
    assert_as_undisturbed(arena, run)


def test_a_gang_without_its_last_node_gives_its_device_back_and_trains_later(arena: Arena) -> None:
    """Ten minutes are twenty seconds here."""
    patience = faults.operator_option(arena.platform.system, "--scale-up-seconds", 20)
    with patience, faults.cordoned(arena.kubectl, arena.other):
        run = arena.start("half")
        run.until("the first pod", lambda: "Running" in phases(run))
        assert sorted(phases(run)) == ["Pending", "Running"]
        run.until("the end of the attempt", lambda: bool(run.status.get("failure")))
        failure = run.status["failure"]
        run.until("its device to be free", lambda: not running(run, 1))
        run.until("another attempt", lambda: run.attempt == 2, HANGING)
    at = time.time()
    run.until_ended(seconds=HANGING)
    add_row(arena, run, "last node missing, then there (two pods)", at, failure["reason"])
    assert failure["reason"] == "GangUnschedulable"
    assert "unschedulable" in failure["message"]
    assert run.status.get("restarts", 0) == 0
    assert_as_undisturbed(arena, run)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_is_found_and_replaced(arena: Arena, hanging: Hanging, rank: int) -> None:
    run, at = hanging[rank]
    arena.started.append(run)
    run.until_resumed(at, HANGING)
    failure = next(s.status["failure"] for s in run.seen if s.status.get("failure"))
    run.until_ended()
    add_row(arena, run, f"rank {rank} stopped (SIGSTOP)", at, failure["reason"])
    assert failure["reason"] == "RankStalled"
    assert run.attempt == 2
    assert_lost_no_more_than_an_interval(run)
    assert_as_undisturbed(arena, run)


def phases(run: Run) -> list[str]:
    """The phases of the training pods of the newest attempt."""
    return [str(pod["status"].get("phase")) for pod in run.pods()] if run.attempt else []


def suspend(kubectl: Kubectl, name: str, wanted: bool) -> float:
    """Set spec.suspend; returns when."""
    return faults.patched(kubectl, "finetunejob", name, {"spec": {"suspend": wanted}})
