"""What time it is, by the clock that stamps the objects.

Plans compare times in objects (when a Job was created, until when a pod may end) with now. Those
were written by the API server, and the clock of this machine may be minutes off. Every answer of
the API server carries a Date; together with the moments of asking and of answering it bounds by
how much the two differ. Our own clock is used as far as it lies within these bounds.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

DRIFT = 0.001
"""Seconds per second by which a bound is trusted less as it ages; clocks are better than that."""

_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def steady() -> float:
    """Seconds that only ever go forward, and go on while the machine is suspended (on Linux)."""
    return time.clock_gettime(_STEADY)


class ServerClock:
    """The API server's clock, as far as its answers tell."""

    def __init__(
        self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = steady
    ) -> None:
        self.steady = steady
        self._wall = wall
        self._low = float("-inf")  # the server's time is steady() plus something between these
        self._high = float("inf")
        self._at = steady()

    def now(self) -> datetime:
        """The time that the API server would write."""
        passed = self.steady()
        slack = DRIFT * (passed - self._at)
        ours = self._wall() - passed
        ours = min(max(ours, self._low - slack), self._high + slack)
        return datetime.fromtimestamp(passed + ours, UTC)

    def heard(self, date: str | None, asked: float, answered: float) -> None:
        """An answer had this Date header; the moments are readings of `steady`."""
        try:
            second = parsedate_to_datetime(date or "").timestamp()
        except ValueError:
            return
        # It was written after we asked and before we had it, in the second that it names.
        low, high = second - answered, second + 1 - asked
        slack = DRIFT * (answered - self._at)
        known = max(low, self._low - slack), min(high, self._high + slack)
        if known[0] > known[1]:  # one of the clocks was set, or another server answered
            known = low, high
        self._low, self._high = known
        self._at = answered
