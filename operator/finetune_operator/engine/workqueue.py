"""Keys that want a look, each worked on by one worker at a time.

The rules are those of client-go's work queue: a key added while it waits is one entry; a key
added while it is worked on waits until that is done, then runs once more, so that nothing that
happened meanwhile is missed. A key has at most one alarm, and a run of the key clears it: the
run decides anew when to look again.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable

from finetune_operator.decision import Key
from finetune_operator.engine.metrics import QueueMetrics

BASE_DELAY = 0.1
MAX_DELAY = 60.0


class WorkQueue:
    """A queue of keys for one event loop."""

    def __init__(self, metrics: QueueMetrics, rng: random.Random | None = None) -> None:
        self._metrics = metrics
        self._rng = rng or random.Random()
        self._ready: deque[Key] = deque()
        self._waiting: dict[Key, float] = {}  # every key in _ready, and since when
        self._running: dict[Key, float] = {}
        self._again: set[Key] = set()
        self._alarms: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._wake = asyncio.Event()
        self._closed = False

    def add(self, key: Key) -> None:
        """Look at the key as soon as a worker is free."""
        if self._closed or key in self._waiting or key in self._again:
            return
        self._metrics.added(key)
        if key in self._running:
            self._again.add(key)
            return
        self._push(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Look at the key in some seconds, or earlier if that was wanted already."""
        if seconds <= 0:
            self.add(key)
        elif not self._closed:
            self._set_alarm(key, asyncio.get_running_loop().time() + seconds)

    def add_failed(self, key: Key, least: float = 0.0) -> float:
        """Look again after an error: 0.1 s, 0.2 s … 60 s, half of it random. Returns the delay.

        `least` is how many seconds the server asked us to wait.
        """
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(MAX_DELAY, BASE_DELAY * 2.0 ** min(failures, 30))
        delay = max(least, delay * self._rng.uniform(0.5, 1.0))
        self._metrics.retried(key)
        self.add_after(key, delay)
        return delay

    def forget(self, key: Key) -> None:
        """The key went well: its next error starts with the shortest delay."""
        self._failures.pop(key, None)

    async def take(self) -> Key | None:
        """The next key, or None once the queue is closed. Say `done` for each."""
        while not self._ready:
            if self._closed:
                return None
            self._wake.clear()
            await self._wake.wait()
        if self._closed:
            return None
        key = self._ready.popleft()
        now = time.monotonic()
        self._metrics.taken(key, now - self._waiting.pop(key), len(self._ready))
        self._running[key] = now
        alarm = self._alarms.pop(key, None)
        if alarm is not None:
            alarm.cancel()
        return key

    def done(self, key: Key) -> None:
        """The worker is through with the key."""
        self._metrics.finished(key, time.monotonic() - self._running.pop(key))
        if key in self._again:
            self._again.discard(key)
            self._push(key)

    def close(self) -> None:
        """Hand out no more keys."""
        self._closed = True
        for alarm in self._alarms.values():
            alarm.cancel()
        self._alarms.clear()
        self._wake.set()

    @property
    def depth(self) -> int:
        """Keys that wait for a worker."""
        return len(self._ready)

    @property
    def idle(self) -> bool:
        """Whether no key waits and none is worked on; alarms do not count."""
        return not (self._ready or self._running)

    def longest_running(self) -> float:
        """Seconds that the oldest run has taken so far."""
        return max((time.monotonic() - each for each in self._running.values()), default=0.0)

    def _push(self, key: Key) -> None:
        self._ready.append(key)
        self._waiting[key] = time.monotonic()
        self._metrics.depth(key, len(self._ready))
        self._wake.set()

    def _set_alarm(self, key: Key, due: float) -> None:
        alarm = self._alarms.get(key)
        if alarm is not None:
            if alarm.when() <= due:
                return
            alarm.cancel()
        self._alarms[key] = asyncio.get_running_loop().call_at(due, self._ring, key)

    def _ring(self, key: Key) -> None:
        self._alarms.pop(key, None)
        self.add(key)


async def work(queue: WorkQueue, run: Callable[[Key], Awaitable[None]], workers: int) -> None:
    """Run keys with so many workers until the queue is closed and the last run has ended."""

    async def worker() -> None:
        while (key := await queue.take()) is not None:
            try:
                await run(key)
            finally:
                queue.done(key)

    async with asyncio.TaskGroup() as group:
        for number in range(workers):
            group.create_task(worker(), name=f"worker {number}")
