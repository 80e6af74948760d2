"""A node loses its power, its network, or hangs; and comes back.

The pods of a partitioned node keep running and can reach the workspace: the job's one rank trains
there alongside its replacement. Its next checkpoint must be fenced.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from hack.cluster.engine import Engine
from tests.e2e.chaos import faults, watching
from tests.e2e.chaos.arena import Arena
from tests.e2e.chaos.judging import (
    add_row,
    assert_as_undisturbed,
    assert_lost_no_more_than_an_interval,
)
from tests.e2e.chaos.runs import PATIENCE, Run

pytestmark = pytest.mark.long
ONE_POD = {"nodes": 1}
NodeFault = Callable[[Engine, str], AbstractContextManager[float]]


def where(run: Run, node: str) -> str:
    """Which rank of the first attempt a node had."""
    on = [index for index, pod in enumerate(run.pods(1)) if pod["spec"]["nodeName"] == node]
    return f"rank {on[0]} was there" if on else "no rank was there"


def start_on_other(arena: Arena, name: str, **training: object) -> Run:
    """A job of one pod, on the node that the fault will happen to."""
    with faults.cordoned(arena.kubectl, arena.engine.nodes[0]):
        run = arena.start(name, compute=ONE_POD, training=training)
        run.until_step(1)
    return run


def goes_on_when_it_is_back(arena: Arena, run: Run, fault: NodeFault, case: str, back: str) -> None:
    """A gang that needs both nodes is replaced, waits, and resumes when the fault is over."""
    place = where(run, arena.other)
    with fault(arena.engine, arena.other) as at:
        run.until_reported(at)
        run.until("the next attempt", lambda: run.attempt == 2)
    over = time.time()
    took = run.until_resumed(over)
    run.until_ended()
    notes = f"{place}; {back} after {over - at:.0f} s, and {took:.0f} s later it trains"
    add_row(arena, run, case, at, notes)
    assert run.status.get("restarts", 0) == 0
    assert_lost_no_more_than_an_interval(run)
    assert_as_undisturbed(arena, run)


def test_a_gang_that_lost_a_node_goes_on_when_it_is_back(arena: Arena, dice: random.Random) -> None:
    run = arena.start("off")
    run.until_step(dice.randint(12, 28))
    goes_on_when_it_is_back(
        arena, run, faults.powered_off, "node off, then on (two pods)", "on again"
    )


def test_a_pod_that_lost_its_node_goes_on_on_another(arena: Arena, dice: random.Random) -> None:
    run = start_on_other(arena, "off-one")
    run.until_step(dice.randint(12, 28))
    with faults.powered_off(arena.engine, arena.other) as at:
        run.until_resumed(at)
        run.until_ended()
    add_row(arena, run, "node off (one pod)", at, "continues on the other node while it is off")
    assert run.attempt == 2
    assert run.status.get("restarts", 0) == 0
    assert_lost_no_more_than_an_interval(run)
    assert_close(arena, run)


def test_a_cut_off_rank_runs_on_and_publishes_nothing(arena: Arena, dice: random.Random) -> None:
    run = start_on_other(arena, "cut", maxSteps=400)
    run.until_step(dice.randint(12, 28))
    (pod,) = run.pods(1)
    with faults.cut_off(arena.engine, arena.other) as at:
        run.until("the next attempt's claim", lambda: 2 in watching.claims_of(run.folder))
        claimed = watching.claims_of(run.folder)[2]
        faults.wait_until_fenced(arena.engine, arena.other, pod["metadata"]["name"])
        run.until_resumed(at)
    late = published(run.folder, 1, claimed)
    steps = [step for step in run.steps() if step.attempt == 1 and step.at > claimed]
    run.until_ended(seconds=2 * PATIENCE)
    notes = f"cut-off rank did {len(steps)} more steps, published {len(late)}, ended as Fenced"
    add_row(arena, run, "node cut off (one pod)", at, notes)
    assert steps, "the cut-off rank did not run on: nothing was proven"
    assert late == []
    assert run.status.get("restarts", 0) == 0
    assert_close(arena, run)


def test_a_gang_with_a_frozen_node_goes_on_when_it_thaws(arena: Arena, dice: random.Random) -> None:
    run = arena.start("frozen")
    run.until_step(dice.randint(12, 28))
    goes_on_when_it_is_back(
        arena, run, faults.frozen, "node frozen, then thawed (two pods)", "thawed"
    )


def published(folder: Path, attempt: int, after: float) -> list[str]:
    """Checkpoints of an attempt, and outputs, that became complete after a moment."""
    paths = [*folder.glob(f"checkpoints/{attempt}/*"), *folder.glob("output")]
    # To publish is to rename, which changes the folder's ctime.
    return [str(path.relative_to(folder)) for path in paths if path.stat().st_ctime > after]


def assert_close(arena: Arena, run: Run) -> None:
    """One process computes the same batches as two, added up in another order."""
    mine = watching.losses(run.steps())
    theirs = watching.losses(arena.baseline.steps())
    for step in mine.keys() & theirs.keys():
        assert mine[step] == pytest.approx(theirs[step], rel=0.02), f"step {step}"
