"""Watches as an operator gets them: late, interrupted, and independent of each other.

Each kind has a stream of its own. A stream keeps its order, as the API server does; two streams are
independent, so a pod may be seen before the Job that created it. Events during an interruption are
never delivered; only a list shows their effect. Of several events of one object within a moment,
only the last is delivered, as kopf does it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from finetune_operator.decision import Manifest
from finetune_operator.engine.kinds import Resource

from tests.sim.clock import Clock, Timer
from tests.sim.server import ApiServer, Happening

MOMENT = 0.1
"""Seconds for which kopf waits for a newer event of the same object."""
LATENCY = 0.05 + MOMENT
"""Seconds from a write to its event, without faults."""


def selected(manifest: Manifest, selector: str) -> bool:
    """Whether label=value holds; an empty selector matches everything."""
    label, _, value = selector.partition("=")
    return not label or (manifest["metadata"].get("labels") or {}).get(label) == value


class Watch:
    """The stream of one kind to one operator."""

    def __init__(
        self,
        clock: Clock,
        of: Resource,
        deliver: Callable[[Happening, Manifest], None],
        met: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._of = of
        self._deliver_event = deliver
        self._met = met
        self._events: deque[tuple[float, Happening, Manifest]] = deque()
        self._timer: Timer | None = None
        self._lag_until = 0.0
        self._lag = LATENCY
        self.cut_until = 0.0
        self.missed = False

    @property
    def lagging(self) -> bool:
        """Whether there are events that were not delivered yet, or never will be."""
        return bool(self._events) or self.missed

    def happened(self, what: Happening, manifest: Manifest) -> None:
        """An object was written; the event is delivered later, or never."""
        if not selected(manifest, self._of.selector):
            return
        if self._clock.now < self.cut_until:
            self._met("watch missed events")
            self.missed = True
            return
        lag = self._lag if self._clock.now < self._lag_until else LATENCY
        if lag > LATENCY:
            self._met("watch delivered late")
        due = self._clock.now + lag
        if self._events:
            due = max(due, self._events[-1][0])
        self._events.append((due, what, manifest))
        self._arm()

    def slow_down(self, lag: float, seconds: float) -> None:
        """Events take `lag` seconds for a while."""
        self._lag, self._lag_until = lag, self._clock.now + seconds

    def cut(self, seconds: float) -> None:
        """Deliver nothing for a while; events in flight are lost."""
        self.missed = self.missed or bool(self._events)
        self._events.clear()
        self.cut_until = self._clock.now + seconds

    def heal(self) -> None:
        """Deliver events in time again, and late ones at once."""
        self._lag_until = self.cut_until = 0.0
        while self._events:
            _, what, manifest = self._events.popleft()
            self._deliver_event(what, manifest)

    def close(self) -> None:
        """Deliver nothing any more."""
        self._events.clear()
        self.cut_until = float("inf")

    def _arm(self) -> None:
        if self._timer is None and self._events:
            self._timer = self._clock.call_at(self._events[0][0], self._deliver)

    def _deliver(self) -> None:
        self._timer = None
        while self._events and self._events[0][0] <= self._clock.now:
            _, what, manifest = self._events.popleft()
            if not self._is_outdone(manifest):
                self._deliver_event(what, manifest)
        self._arm()

    def _is_outdone(self, manifest: Manifest) -> bool:
        """Whether there is a newer event of the object already."""
        uid, soon = manifest["metadata"]["uid"], self._clock.now + MOMENT
        return any(due <= soon and m["metadata"]["uid"] == uid for due, _, m in self._events)


def subscribe(server: ApiServer, watches: dict[str, Watch]) -> Callable[[], None]:
    """Feed the watches from now on; the returned function ends that."""

    def listener(what: Happening, new: Manifest, _old: Manifest | None) -> None:
        watch = watches.get(new["kind"])
        if watch is not None:
            watch.happened(what, new)

    server.listeners.append(listener)
    return lambda: server.listeners.remove(listener)
