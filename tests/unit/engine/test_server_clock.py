from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from finetune_operator.engine.server_clock import ServerClock, steady

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp()


class World:
    """A server's clock, this machine's clock, and the time that really passes."""

    def __init__(self, ahead: float) -> None:
        self.passed, self.ahead = 1000.0, ahead
        self.clock = ServerClock(lambda: self.server() + self.ahead, lambda: self.passed)

    def server(self) -> float:
        return NOON + self.passed

    def off(self) -> float:
        """Seconds by which the estimate is wrong."""
        return abs(self.clock.now().timestamp() - self.server())

    def ask(self, there: float = 0.01, back: float = 0.01) -> None:
        asked = self.passed
        self.passed += there
        date = format_datetime(datetime.fromtimestamp(int(self.server()), UTC), usegmt=True)
        self.passed += back
        self.clock.heard(date, asked, self.passed)


def test_without_an_answer_it_is_our_own_clock() -> None:
    assert World(300).off() == 300


def test_a_right_clock_is_left_alone() -> None:
    world = World(0)
    for _ in range(50):
        world.passed += 0.37
        world.ask()
        assert world.off() < 1e-3


@pytest.mark.parametrize("ahead", [300.0, -300.0, 1.5, -1.5, 86400.0])
def test_one_answer_bounds_the_error_by_a_second_and_more_of_them_narrow_it(ahead: float) -> None:
    world = World(ahead)
    world.ask()
    assert world.off() <= 1.1
    for _ in range(50):
        world.passed += 0.37
        world.ask()
    assert world.off() <= 0.2


def test_a_slow_answer_does_not_mislead() -> None:
    world = World(300)
    world.ask()
    before = world.off()
    world.ask(there=14, back=0)
    world.ask(there=0, back=14)
    assert world.off() <= before + 0.1


def test_a_clock_that_is_set_while_we_run_changes_nothing() -> None:
    world = World(0)
    world.ask()
    world.ahead = -3600
    assert world.off() <= 1.1


def test_a_server_whose_clock_is_set_is_followed() -> None:
    world = World(0)
    world.ask()
    world.clock.heard("Thu, 01 Jan 2026 18:00:00 GMT", world.passed, world.passed)
    assert world.clock.now() >= datetime(2026, 1, 1, 18, tzinfo=UTC)


@pytest.mark.parametrize("date", [None, "", "now", "1767268800"])
def test_an_answer_without_a_usable_date_says_nothing(date: str | None) -> None:
    world = World(300)
    world.clock.heard(date, 0.0, 0.0)
    assert world.off() == 300


def test_the_steady_clock_never_goes_back() -> None:
    readings = [steady() for _ in range(1000)]
    assert readings == sorted(readings)
