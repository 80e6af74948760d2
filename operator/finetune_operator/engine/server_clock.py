"""The API server's clock, estimated from its responses.

Reconcile functions compare times in objects (when a Job was created, until when a pod may end) with
now. The API server wrote those times, and the clock of this machine may be minutes off. Every
response of the API server carries a Date header; together with the moments at which the request was
sent and the response received, it bounds the difference between the two clocks. Our own clock is
used as far as it lies within these bounds. `kube_client` feeds it, `reconciler` reads it.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

DRIFT = 0.001
"""Seconds per second by which a bound widens as it ages; clocks drift less than that."""

_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def steady() -> float:
    """Seconds that never go back, and on Linux also count while the machine is suspended."""
    return time.clock_gettime(_STEADY)


class ServerClock:
    """An estimate of the API server's clock."""

    def __init__(
        self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = steady
    ) -> None:
        self.steady = steady
        self._wall = wall
        self._low = float("-inf")  # the server's time minus steady() lies between these
        self._high = float("inf")
        self._at = steady()

    def now(self) -> datetime:
        """The time that the API server would write."""
        steady_now = self.steady()
        slack = DRIFT * (steady_now - self._at)
        offset = self._wall() - steady_now
        offset = min(max(offset, self._low - slack), self._high + slack)
        return datetime.fromtimestamp(steady_now + offset, UTC)

    def observe_date(self, date: str | None, sent_at: float, received_at: float) -> None:
        """A response had this Date header; the other two are readings of `steady`."""
        try:
            second = parsedate_to_datetime(date or "").timestamp()
        except ValueError:
            return
        # The server wrote it after we sent and before we received, in the second that it names.
        low, high = second - received_at, second + 1 - sent_at
        slack = DRIFT * (received_at - self._at)
        narrowed = max(low, self._low - slack), min(high, self._high + slack)
        if narrowed[0] > narrowed[1]:  # one of the clocks was set, or another server answered
            narrowed = low, high
        self._low, self._high = narrowed
        self._at = received_at
