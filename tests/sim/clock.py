"""Virtual time: a list of future calls, and no waiting for any of them.

It replaces the running event loop where the engine needs the time or a timer, so the operator's
own workqueue keeps its back-off and its delays here. Two calls that are due at the same moment
happen in the order in which they were scheduled; nothing depends on the machine.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

START = datetime(2026, 1, 5, 12, 0, 0, tzinfo=UTC)


class Timer:
    """A call that is due at a time, as asyncio.TimerHandle."""

    __slots__ = ("_call", "_when")

    def __init__(self, when: float, call: Callable[[], object] | None) -> None:
        self._when = when
        self._call = call

    def when(self) -> float:
        """Seconds since the start."""
        return self._when

    def cancel(self) -> None:
        """Do not make the call."""
        self._call = None

    def ring(self) -> None:
        """Make the call, once."""
        call, self._call = self._call, None
        if call is not None:
            call()


class Clock:
    """Seconds since the start of a history, and the calls that are scheduled."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = itertools.count()
        self._timers: list[tuple[float, int, Timer]] = []

    def time(self) -> float:
        """As asyncio's loop.time()."""
        return self.now

    def call_at(self, when: float, call: Callable[..., object], *arguments: Any) -> Timer:
        """As asyncio's loop.call_at()."""
        timer = Timer(when, (lambda: call(*arguments)) if arguments else call)
        heapq.heappush(self._timers, (max(when, self.now), next(self._order), timer))
        return timer

    def after(self, seconds: float, call: Callable[..., object], *arguments: Any) -> Timer:
        """Schedule a call `seconds` from now."""
        return self.call_at(self.now + seconds, call, *arguments)

    def advance(self, seconds: float, afterwards: Callable[[], None]) -> None:
        """Let time pass; `afterwards` is called after each scheduled call."""
        until = self.now + seconds
        while self._timers and self._timers[0][0] <= until:
            self.now, _, timer = heapq.heappop(self._timers)
            timer.ring()
            afterwards()
        self.now = until

    def moment(self) -> datetime:
        """The time of day."""
        return START + timedelta(seconds=self.now)

    def unix(self) -> float:
        """Seconds since 1970."""
        return START.timestamp() + self.now

    def text(self, later: float = 0.0) -> str:
        """RFC 3339 in whole seconds, as the API server writes times."""
        at = START + timedelta(seconds=int(self.now + later))
        return at.isoformat().replace("+00:00", "Z")


@contextmanager
def running(clock: Clock) -> Iterator[None]:
    """Make the clock asyncio's running loop."""
    asyncio._set_running_loop(clock)  # type: ignore[arg-type]
    try:
        yield
    finally:
        asyncio._set_running_loop(None)
