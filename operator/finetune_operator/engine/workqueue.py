"""The work queue: keys that wait for a reconcile, each run by one worker at a time.

The rules are those of client-go's work queue: a key added while it waits is one entry; a key added
while it runs waits until that run has ended, then runs once more, so that no event in between is
missed. A key has at most one timer, and a run of the key cancels it: the run decides when the next
one is due. The workers call `reconciler`.
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
        self._waiting_since: dict[Key, float] = {}  # of every key in _ready
        self._running_since: dict[Key, float] = {}
        self._rerun: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._wake_up = asyncio.Event()
        self._closed = False

    def add(self, key: Key) -> None:
        """Run the key as soon as a worker is free."""
        if self._closed or key in self._waiting_since or key in self._rerun:
            return
        self._metrics.count_add(key)
        if key in self._running_since:
            self._rerun.add(key)
            return
        self._push(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Run the key in some seconds, or earlier if it has an earlier timer."""
        if seconds <= 0:
            self.add(key)
        elif not self._closed:
            self._set_timer(key, asyncio.get_running_loop().time() + seconds)

    def add_rate_limited(self, key: Key, at_least: float = 0.0) -> float:
        """Run the key again after an error: in 0.1 s, 0.2 s … 60 s, half of it random.

        `at_least` is how many seconds the API server requires (Retry-After). Returns the delay in
        seconds.
        """
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(MAX_DELAY, BASE_DELAY * 2.0 ** min(failures, 30))
        delay = max(at_least, delay * self._rng.uniform(0.5, 1.0))
        self._metrics.count_retry(key)
        self.add_after(key, delay)
        return delay

    def forget(self, key: Key) -> None:
        """A run of the key succeeded: its next error starts with the shortest delay."""
        self._failures.pop(key, None)

    async def get(self) -> Key | None:
        """The next key, or None once the queue is closed. Call `done` after each."""
        while not self._ready:
            if self._closed:
                return None
            self._wake_up.clear()
            await self._wake_up.wait()
        if self._closed:
            return None
        key = self._ready.popleft()
        now = time.monotonic()
        self._metrics.observe_get(key, now - self._waiting_since.pop(key), len(self._ready))
        self._running_since[key] = now
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        return key

    def done(self, key: Key) -> None:
        """The run of the key has ended."""
        self._metrics.observe_done(key, time.monotonic() - self._running_since.pop(key))
        if key in self._rerun:
            self._rerun.discard(key)
            self._push(key)

    def close(self) -> None:
        """Hand out no more keys."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._wake_up.set()

    @property
    def depth(self) -> int:
        """Keys that wait for a worker."""
        return len(self._ready)

    @property
    def is_idle(self) -> bool:
        """Whether no key waits and none runs; timers do not count."""
        return not (self._ready or self._running_since)

    def longest_running(self) -> float:
        """Seconds that the oldest run has taken so far."""
        return max((time.monotonic() - at for at in self._running_since.values()), default=0.0)

    def _push(self, key: Key) -> None:
        self._ready.append(key)
        self._waiting_since[key] = time.monotonic()
        self._metrics.set_depth(len(self._ready))
        self._wake_up.set()

    def _set_timer(self, key: Key, due: float) -> None:
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= due:
                return
            timer.cancel()
        self._timers[key] = asyncio.get_running_loop().call_at(due, self._on_timer, key)

    def _on_timer(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)


async def run_workers(
    queue: WorkQueue, reconcile: Callable[[Key], Awaitable[None]], workers: int
) -> None:
    """Reconcile keys, `workers` at a time, until the queue is closed and the last run has ended."""

    async def run_worker() -> None:
        while (key := await queue.get()) is not None:
            try:
                await reconcile(key)
            finally:
                queue.done(key)

    async with asyncio.TaskGroup() as group:
        for number in range(workers):
            group.create_task(run_worker(), name=f"worker {number}")
