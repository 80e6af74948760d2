"""Watches as an operator gets them: late, cut, and out of step with each other.

Each kind has a stream of its own. Within a stream order is kept, as the API server keeps it; two
streams know nothing of each other, so a pod may be seen before the Job that made it. What happens
while a stream is cut is never told; only a list shows it. Of what happens to an object within a
moment only the last is told, as kopf does it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from finetune_operator.decision import Manifest
from finetune_operator.engine.kinds import Resource

from tests.sim.clock import Clock, Timer
from tests.sim.server import ApiServer, Happening

MOMENT = 0.1
"""Seconds in which kopf waits for newer news of the same object."""
LATENCY = 0.05 + MOMENT
"""Seconds from a write to its news, on a good day."""


def selected(manifest: Manifest, selector: str) -> bool:
    """Whether label=value holds; an empty selector wants everything."""
    label, _, value = selector.partition("=")
    return not label or (manifest["metadata"].get("labels") or {}).get(label) == value


class Watch:
    """The stream of one kind to one operator."""

    def __init__(
        self,
        clock: Clock,
        of: Resource,
        tell: Callable[[Happening, Manifest], None],
        met: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._of = of
        self._tell = tell
        self._met = met
        self._news: deque[tuple[float, Happening, Manifest]] = deque()
        self._timer: Timer | None = None
        self._lag_until = 0.0
        self._lag = LATENCY
        self.cut_until = 0.0
        self.missed = False

    @property
    def lagging(self) -> bool:
        """Whether there is news that was not told yet, or will never be."""
        return bool(self._news) or self.missed

    def happened(self, what: Happening, manifest: Manifest) -> None:
        """Something was written; it will be told later, or never."""
        if not selected(manifest, self._of.selector):
            return
        if self._clock.now < self.cut_until:
            self._met("watch missed news")
            self.missed = True
            return
        lag = self._lag if self._clock.now < self._lag_until else LATENCY
        if lag > LATENCY:
            self._met("watch told late")
        due = self._clock.now + lag
        if self._news:
            due = max(due, self._news[-1][0])
        self._news.append((due, what, manifest))
        self._arm()

    def slow_down(self, lag: float, seconds: float) -> None:
        """News takes `lag` seconds for a while."""
        self._lag, self._lag_until = lag, self._clock.now + seconds

    def cut(self, seconds: float) -> None:
        """Nothing is told for a while, and what was on its way is lost."""
        self.missed = self.missed or bool(self._news)
        self._news.clear()
        self.cut_until = self._clock.now + seconds

    def heal(self) -> None:
        """News is told in time again, and at once what is late."""
        self._lag_until = self.cut_until = 0.0
        while self._news:
            _, what, manifest = self._news.popleft()
            self._tell(what, manifest)

    def close(self) -> None:
        """Tell nothing any more."""
        self._news.clear()
        self.cut_until = float("inf")

    def _arm(self) -> None:
        if self._timer is None and self._news:
            self._timer = self._clock.call_at(self._news[0][0], self._deliver)

    def _deliver(self) -> None:
        self._timer = None
        while self._news and self._news[0][0] <= self._clock.now:
            _, what, manifest = self._news.popleft()
            if not self._is_outdone(manifest):
                self._tell(what, manifest)
        self._arm()

    def _is_outdone(self, manifest: Manifest) -> bool:
        """Whether there is newer news of the object already."""
        uid, soon = manifest["metadata"]["uid"], self._clock.now + MOMENT
        return any(due <= soon and m["metadata"]["uid"] == uid for due, _, m in self._news)


def subscribe(server: ApiServer, watches: dict[str, Watch]) -> Callable[[], None]:
    """Feed the watches from now on; the answer ends that."""

    def listener(what: Happening, new: Manifest, _old: Manifest | None) -> None:
        watch = watches.get(new["kind"])
        if watch is not None:
            watch.happened(what, new)

    server.listeners.append(listener)
    return lambda: server.listeners.remove(listener)
