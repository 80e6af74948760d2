"""An operator process: the engine's own reconciler, cache, event handlers, lists and work queue.

Only its edges are replaced: the connection (port.py), the watches (watch.py), the HTTP requests to
pods, and time. Coroutines are driven by hand, one step at a time: a call that hangs leaves the
process in the middle of a reconcile while simulated time continues.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar, cast

from finetune_operator.decision import (
    ControllerTable,
    EventQuery,
    HttpRequest,
    HttpResponse,
    Key,
)
from finetune_operator.engine.cache import Cache
from finetune_operator.engine.event_handlers import EventHandlers
from finetune_operator.engine.event_recorder import EventRecorder
from finetune_operator.engine.http_poller import HttpPoller
from finetune_operator.engine.kinds import WATCHED, Resource
from finetune_operator.engine.kube_client import ApiError, KubeClient
from finetune_operator.engine.metrics import Metrics
from finetune_operator.engine.reconciler import Reconciler
from finetune_operator.engine.relist import DEBOUNCE, PERIOD, RETRY, Relister
from finetune_operator.engine.workqueue import WorkQueue
from finetune_operator.engine.writer import Writer

from tests.sim.clock import Clock, Timer
from tests.sim.invariants import Violation
from tests.sim.port import Crash, Port
from tests.sim.server import ApiServer
from tests.sim.watch import Watch, subscribe

T = TypeVar("T")
KINDS: tuple[Resource, ...] = tuple(each for each in WATCHED if not each.is_optional)
METRICS = Metrics()
MOST_AT_ONCE = 60
"""Reconciles without any time between them; more is a loop."""


def drive(call: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits."""
    try:
        call.send(None)
    except StopIteration as end:
        return cast(T, end.value)
    raise AssertionError("this call must not wait")


class FakePoller:
    """An HttpPoller without HTTP: the simulated pods answer."""

    def __init__(
        self,
        port: Port,
        clock: Clock,
        answer: Callable[[str], Any],
        on_response: Callable[[Key], None],
    ) -> None:
        self.responses: dict[str, HttpResponse] = {}
        self._port = port
        self._clock = clock
        self._answer = answer
        self._on_response = on_response
        self._requests: dict[Key, dict[str, HttpRequest | EventQuery]] = {}
        self._timers: dict[str, Timer] = {}
        self._due: dict[str, float] = {}

    def set_requests(self, key: Key, requests: Iterable[HttpRequest | EventQuery]) -> None:
        """Poll these for the key from now on."""
        by_id = {request.id: request for request in requests}
        for request_id in self._requests.get(key, {}).keys() - by_id.keys():
            self.responses.pop(request_id, None)
            self._due.pop(request_id, None)
            if timer := self._timers.pop(request_id, None):
                timer.cancel()
        self._requests[key] = by_id
        for request in by_id.values():
            if request.id not in self._timers:
                due = max(self._clock.now + 0.05, self._due.get(request.id, 0.0))
                self._timers[request.id] = self._clock.call_at(due, self._poll, key, request)

    def close(self) -> None:
        """Stop polling."""
        for timer in self._timers.values():
            timer.cancel()

    def _poll(self, key: Key, request: HttpRequest | EventQuery) -> None:
        del self._timers[request.id]
        body = (
            self._query(request) if isinstance(request, EventQuery) else self._answer(request.url)
        )
        at = self._clock.unix()
        self.responses[request.id] = (
            HttpResponse(at, error="no route to host")
            if body is None
            else HttpResponse(at, 200, body)
        )
        self._due[request.id] = self._clock.now + request.interval
        self._on_response(key)

    def _query(self, query: EventQuery) -> Any:
        try:
            return drive(self._port.list_events(query.namespace, query.uid, query.reason))
        except ApiError:
            return None


class Operator:
    """One replica: it leads, or believes that it does, or is not there."""

    def __init__(
        self,
        name: str,
        server: ApiServer,
        clock: Clock,
        controllers: ControllerTable,
        answer: Callable[[str], Any],
        met: Callable[[str], None],
    ) -> None:
        self.name = name
        self._server = server
        self._clock = clock
        self._controllers = controllers
        self._answer = answer
        self._met = met
        self.alive = False
        self.deposed = False
        self.leads_until = 0.0
        self.port = Port(server, clock, met)
        self.watches: dict[str, Watch] = {}
        self._unsubscribe: Callable[[], None] = lambda: None
        self._run: tuple[Key, Coroutine[Any, Any, None]] | None = None
        self._synced = False
        self._life = 0

    def start(self) -> None:
        """As a new process that has just been elected: an empty cache, then lists and watches."""
        clock, port = self._clock, cast(KubeClient, self.port)
        self._life += 1
        self.deposed = False
        self.alive, self.leads_until, self._synced = True, float("inf"), False
        self.port.fault = None
        self.queue = WorkQueue(METRICS.queue, random.Random(self._life))
        self.http_poller = FakePoller(self.port, clock, self._answer, self.queue.add)
        self.cache = Cache(self.http_poller.responses)
        event_handlers = EventHandlers(self.cache, self.queue, self._controllers, METRICS.handovers)
        self.relister = Relister(port, self.cache, event_handlers, METRICS)
        writer = Writer(port, self.cache, event_handlers, METRICS, self.leads, self._confirm)
        self.reconciler = Reconciler(
            self._controllers,
            self.cache,
            self.queue,
            event_handlers,
            writer,
            cast(HttpPoller, self.http_poller),
            EventRecorder(port, self.name, clock.moment),
            METRICS,
            clock.moment,
        )
        self.watches = {each.kind: self._watch(each, event_handlers) for each in KINDS}
        self._unsubscribe = subscribe(self._server, self.watches)
        self._first()

    def stop(self) -> None:
        """The process is gone, at any point of its work."""
        if not self.alive:
            return
        self.alive = False
        self._unsubscribe()
        for watch in self.watches.values():
            watch.close()
        if self._run is not None:
            self._run[1].close()
            self._run = None
        self.queue.close()
        self.http_poller.close()

    def leads(self) -> bool:
        """Whether this process believes that the Lease is its own."""
        return self.alive and self._clock.now < self.leads_until

    async def _confirm(self) -> bool:
        """What the Lease says."""
        self.port.reach()
        return not self.deposed

    @property
    def idle(self) -> bool:
        """Whether it has nothing to do and knows all there is to know."""
        late = any(watch.lagging for watch in self.watches.values())
        return self._synced and self._run is None and self.queue.is_idle and not late

    def depose(self, seconds: float, deaf: bool) -> None:
        """It acts as leader for a while although it has lost the Lease.

        Deaf: it receives no watch events either, like a process that was frozen or partitioned.
        Otherwise it receives all of them in time: a process that knew every new status, but not the
        Jobs that came with it, could not be distinguished from the leader by its writes.
        """
        self.deposed = True
        for watch in self.watches.values():
            if deaf:
                watch.cut(seconds)
            else:
                watch.heal()
                watch.missed = False
        if not deaf:
            self.relist()
        self.leads_until = self._clock.now + seconds
        life = self._life
        self._clock.after(seconds, lambda: self.stop() if self._life == life else None)

    def pump(self) -> None:
        """Reconcile the keys that are due, until a coroutine has to wait."""
        for _ in range(MOST_AT_ONCE):
            if not (self.alive and self._synced and self._run is None and self.queue.depth):
                return
            key = drive(self.queue.get())
            assert key is not None
            self._run = key, self.reconciler.reconcile(key)
            self._step(self._life)
        raise Violation(f"operator {self.name} reconciles {self.queue.depth} keys indefinitely")

    def relist(self) -> None:
        """List everything, as after an interrupted watch and periodically."""
        if not (self.alive and self._synced):
            return
        try:
            for each in KINDS:
                drive(self.relister.relist(each))
                if self._clock.now >= self.watches[each.kind].cut_until:
                    self.watches[each.kind].missed = False
        except ApiError:
            self._later(RETRY, self.relist)

    def cut(self, kind: str, seconds: float) -> None:
        """A watch is interrupted, and the operator notices some time later."""
        if self.alive:
            self.watches[kind].cut(seconds)
            self._later(seconds + DEBOUNCE, self.relist)

    def _first(self) -> None:
        try:
            for each in KINDS:
                drive(self.relister.relist(each))
        except ApiError:
            self._later(RETRY, self._first)
            return
        self._synced = True
        self.cache.set_served_kinds(frozenset((each.group, each.kind) for each in KINDS))
        for key in self._controllers.initial_keys(self.cache):
            self.queue.add(key)
        self._later(PERIOD, self._now_and_then)

    def _now_and_then(self) -> None:
        self.relist()
        self._later(PERIOD, self._now_and_then)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        life = self._life
        self._clock.after(seconds, lambda: call() if self.alive and self._life == life else None)

    def _watch(self, of: Resource, event_handlers: EventHandlers) -> Watch:
        def deliver(what: str, manifest: dict[str, Any]) -> None:
            if what == "DELETED":
                event_handlers.on_delete(manifest)
            else:
                event_handlers.on_update(manifest)

        return Watch(self._clock, of, deliver, self._met)

    def _step(self, life: int) -> None:
        """Continue the running reconcile, up to its next wait or its end."""
        if self._run is None or self._life != life:
            return
        key, coroutine = self._run
        try:
            seconds = coroutine.send(None)
        except StopIteration:
            self._run = None
            self.queue.done(key)
        except Crash:
            self._run = None
            self.stop()
        else:
            self._clock.after(seconds, self._step, life)
