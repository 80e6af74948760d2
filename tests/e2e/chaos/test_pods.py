"""Pods and processes of a gang are killed, stopped, deleted, evicted, suspended, or run out of
memory."""

from __future__ import annotations

import random
import signal

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
from tests.e2e.chaos.runs import Run

RANKS = {"leader": 0, "other": 1}


def name_of(run: Run, rank: int) -> str:
    return str(run.pods()[rank]["metadata"]["name"])


@pytest.mark.parametrize("which", ["leader", pytest.param("other", marks=pytest.mark.long)])
def test_a_killed_rank_costs_at_most_an_interval(
    arena: Arena, dice: random.Random, which: str
) -> None:
    arena.baseline()
    run = arena.start(f"killed-{which}")
    run.until_step(dice.randint(12, 28))
    at = faults.signal_ranks(run.kubectl, name_of(run, RANKS[which]), signal.SIGKILL)
    run.until_ended()
    add_row(arena, run, f"rank {RANKS[which]} killed (-9)", at)
    assert run.attempt == 2
    assert run.status["restarts"] == 1
    assert_lost_no_more_than_an_interval(run)
    assert_as_undisturbed(arena, run)


@pytest.mark.long
@pytest.mark.parametrize("which", RANKS)
def test_a_stopped_rank_is_found_and_replaced(
    arena: Arena, dice: random.Random, which: str
) -> None:
    run = arena.start(f"stopped-{which}")
    run.until_step(dice.randint(12, 28))
    with faults.stopped_ranks(run.kubectl, name_of(run, RANKS[which])) as at:
        run.until_resumed(at)
    failure = next(s.status["failure"] for s in run.seen if s.status.get("failure"))
    run.until_ended()
    add_row(arena, run, f"rank {RANKS[which]} stopped (SIGSTOP)", at, failure["reason"])
    assert failure["reason"] == "RankStalled"
    assert run.attempt == 2
    assert_lost_no_more_than_an_interval(run)
    assert_as_undisturbed(arena, run)


@pytest.mark.long
def test_a_deleted_pod_costs_nothing(arena: Arena, dice: random.Random) -> None:
    run = arena.start("deleted")
    run.until_step(dice.randint(12, 28))
    rank = dice.choice((0, 1))
    at = faults.delete_pod(run.kubectl, name_of(run, rank))
    run.until_ended()
    add_row(arena, run, f"pod of rank {rank} deleted", at)
    assert run.attempt == 2
    assert run.status.get("restarts", 0) == 0
    assert_lost_nothing(run)
    assert_as_undisturbed(arena, run)


def test_a_drained_node_costs_nothing(arena: Arena, dice: random.Random) -> None:
    arena.baseline()
    run = arena.start("drained")
    run.until_step(dice.randint(12, 28))
    with faults.drained(run.kubectl, arena.other, seconds=120) as at:
        run.until_told(at)
    run.until_ended()
    add_row(arena, run, "node drained, then uncordoned", at)
    assert run.attempt == 2
    assert run.status.get("restarts", 0) == 0
    assert_lost_nothing(run)
    assert_as_undisturbed(arena, run)


@pytest.mark.long
def test_a_reclaimed_node_costs_nothing(arena: Arena, dice: random.Random) -> None:
    run = arena.start("reclaimed")
    run.until_step(dice.randint(12, 28))
    with faults.reclaimed(run.kubectl, arena.other) as at:
        run.until("the gang to end", lambda: not running(run, 1))
    run.until_ended()
    add_row(arena, run, "node reclaimed (taint NoExecute)", at)
    assert run.attempt == 2
    assert run.status.get("restarts", 0) == 0
    assert_lost_nothing(run)
    assert_as_undisturbed(arena, run)


@pytest.mark.long
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


@pytest.mark.long
def test_too_little_memory_ends_with_the_reason_and_a_remedy(arena: Arena) -> None:
    with faults.profile_with(arena.kubectl, "chaos-small", hostMemoryPerDevice="420Mi") as profile:
        run = arena.start("oom", compute={"profile": profile}, maxRestarts=1)
        run.until("the first attempt to end", lambda: run.status.get("failure"))
        at = next(s.at for s in run.seen if s.status.get("failure"))
        run.until_ended("Failed")
    failure = run.status["failure"]
    arena.table.add(run.row("out of memory (killed by the kernel)", at, "-", failure["remedy"]))
    assert failure["reason"] == "OutOfHostMemory"
    assert "hostMemoryPerDevice" in failure["remedy"]
    assert run.attempt == 2


def running(run: Run, attempt: int) -> list[str]:
    """Pods of an attempt that have not ended."""
    return [
        pod["metadata"]["name"]
        for pod in run.pods(attempt)
        if pod["status"].get("phase") not in ("Succeeded", "Failed")
    ]


def suspend(kubectl: Kubectl, name: str, wanted: bool) -> float:
    """Set spec.suspend; returns when."""
    return faults.patched(kubectl, "finetunejob", name, {"spec": {"suspend": wanted}})
