from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from finetune_operator.engine.server_clock import ServerClock, steady

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp()


class World:
    """A server's clock, this machine's clock, and the true time."""

    def __init__(self, ahead: float) -> None:
        self.passed, self.ahead = 1000.0, ahead
        self.clock = ServerClock(lambda: self.server() + self.ahead, lambda: self.passed)

    def server(self) -> float:
        return NOON + self.passed

    def error(self) -> float:
        """Seconds by which the estimate is wrong."""
        return abs(self.clock.now().timestamp() - self.server())

    def request(self, there: float = 0.01, back: float = 0.01) -> None:
        sent_at = self.passed
        self.passed += there
        date = format_datetime(datetime.fromtimestamp(int(self.server()), UTC), usegmt=True)
        self.passed += back
        self.clock.observe_date(date, sent_at, self.passed)


def test_without_a_response_the_time_is_our_own_clock() -> None:
    assert World(300).error() == 300


def test_a_correct_clock_is_not_changed() -> None:
    world = World(0)
    for _ in range(50):
        world.passed += 0.37
        world.request()
        assert world.error() < 1e-3


@pytest.mark.parametrize("ahead", [300.0, -300.0, 1.5, -1.5, 86400.0])
def test_one_response_bounds_the_error_to_a_second_and_more_responses_narrow_it(
    ahead: float,
) -> None:
    world = World(ahead)
    world.request()
    assert world.error() <= 1.1
    for _ in range(50):
        world.passed += 0.37
        world.request()
    assert world.error() <= 0.2


def test_a_slow_response_does_not_add_an_error() -> None:
    world = World(300)
    world.request()
    before = world.error()
    world.request(there=14, back=0)
    world.request(there=0, back=14)
    assert world.error() <= before + 0.1


def test_setting_our_own_clock_at_run_time_changes_nothing() -> None:
    world = World(0)
    world.request()
    world.ahead = -3600
    assert world.error() <= 1.1


def test_setting_the_servers_clock_changes_the_time() -> None:
    world = World(0)
    world.request()
    world.clock.observe_date("Thu, 01 Jan 2026 18:00:00 GMT", world.passed, world.passed)
    assert world.clock.now() >= datetime(2026, 1, 1, 18, tzinfo=UTC)


@pytest.mark.parametrize("date", [None, "", "now", "1767268800"])
def test_a_response_without_a_usable_date_changes_nothing(date: str | None) -> None:
    world = World(300)
    world.clock.observe_date(date, 0.0, 0.0)
    assert world.error() == 300


def test_the_steady_clock_never_goes_back() -> None:
    readings = [steady() for _ in range(1000)]
    assert readings == sorted(readings)
