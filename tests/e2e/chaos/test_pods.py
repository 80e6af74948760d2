"""A rank is killed, or the pods of a node are evicted: drained, or reclaimed by a cloud."""

from __future__ import annotations

import random
import signal

import pytest

from tests.e2e.chaos import faults
from tests.e2e.chaos.arena import Arena
from tests.e2e.chaos.judging import (
    add_row,
    assert_as_undisturbed,
    assert_lost_no_more_than_an_interval,
    assert_lost_nothing,
)
from tests.e2e.chaos.runs import running

RANKS = {"leader": 0, "other": 1}


@pytest.mark.parametrize("which", ["leader", pytest.param("other", marks=pytest.mark.long)])
def test_a_killed_rank_costs_at_most_an_interval(
    arena: Arena, dice: random.Random, which: str
) -> None:
    run = arena.start(f"killed-{which}")
    run.until_step(dice.randint(12, 28))
    at = faults.signal_ranks(run.kubectl, run.pod(RANKS[which]), signal.SIGKILL)
    run.until_ended()
    add_row(arena, run, f"rank {RANKS[which]} killed (-9)", at)
    assert run.attempt == 2
    assert run.status["restarts"] == 1
    assert_lost_no_more_than_an_interval(run)
    assert_as_undisturbed(arena, run)


def test_a_drained_node_costs_nothing(arena: Arena, dice: random.Random) -> None:
    run = arena.start("drained")
    run.until_step(dice.randint(12, 28))
    with faults.drained(run.kubectl, arena.other, seconds=120) as at:
        run.until_reported(at)
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
