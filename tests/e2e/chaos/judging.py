"""What every case must show: the end, how much was done twice, and that nothing else changed."""

from __future__ import annotations

from tests.e2e.chaos.arena import Arena
from tests.e2e.chaos.runs import EVERY, IN_FLIGHT, Run


def add_row(arena: Arena, run: Run, case: str, at: float | None, notes: str = "") -> None:
    """Put the case into the table."""
    arena.table.add(run.row(case, at, run.compared(arena.baseline), notes))


def assert_lost_nothing(run: Run) -> None:
    """Every step was done once."""
    assert run.lost() == 0


def assert_lost_no_more_than_an_interval(run: Run) -> None:
    """What was done since the newest checkpoint, and while the next one was being published."""
    assert run.lost() <= EVERY + IN_FLIGHT


def assert_as_undisturbed(arena: Arena, run: Run) -> None:
    """Every step was done, and its loss is that of the run with nothing in its way."""
    assert run.compared(arena.baseline) == "equal, bit by bit"
    done = {step.number for step in run.steps()}
    assert done == {step.number for step in arena.baseline.steps()}
