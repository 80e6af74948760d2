"""An operator process: the engine's own reconciler, cache, intake, lists and work queue.

Only its edges are replaced: the connection (port.py), the watches (watch.py), the questions to
pods, and time. Coroutines are driven by hand, one step at a time: a call that hangs leaves the
process in the middle of a reconcile while the world goes on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar, cast

from finetune_operator.decision import HttpRequest, HttpResponse, Key
from finetune_operator.engine.cache import Cache
from finetune_operator.engine.event_handlers import EventHandlers
from finetune_operator.engine.event_recorder import EventRecorder
from finetune_operator.engine.http_poller import HttpPoller
from finetune_operator.engine.kinds import WATCHED, Resource
from finetune_operator.engine.kube_client import ApiError, KubeClient
from finetune_operator.engine.metrics import Metrics
from finetune_operator.engine.reconciler import Controllers, Reconciler
from finetune_operator.engine.relist import PERIOD, RETRY, SETTLE, Relister
from finetune_operator.engine.workqueue import WorkQueue

from tests.sim.clock import Clock, Timer
from tests.sim.invariants import Violation
from tests.sim.port import Crash, Port
from tests.sim.server import ApiServer
from tests.sim.watch import Watch, subscribe

T = TypeVar("T")
KINDS: tuple[Resource, ...] = tuple(each for each in WATCHED if not each.optional)
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


class Questions:
    """What Asks is to a reconciler: the pods' answers, without HTTP."""

    def __init__(
        self, clock: Clock, answer: Callable[[str], Any], answered: Callable[[Key], None]
    ) -> None:
        self.answers: dict[str, HttpResponse] = {}
        self._clock = clock
        self._answer = answer
        self._answered = answered
        self._wanted: dict[Key, dict[str, HttpRequest]] = {}
        self._timers: dict[str, Timer] = {}
        self._due: dict[str, float] = {}

    def want(self, key: Key, asks: Iterable[HttpRequest]) -> None:
        """What the key wants to know from now on."""
        wanted = {ask.id: ask for ask in asks}
        for ask_id in self._wanted.get(key, {}).keys() - wanted.keys():
            self.answers.pop(ask_id, None)
            self._due.pop(ask_id, None)
            if timer := self._timers.pop(ask_id, None):
                timer.cancel()
        self._wanted[key] = wanted
        for ask in wanted.values():
            if ask.id not in self._timers:
                due = max(self._clock.now + 0.05, self._due.get(ask.id, 0.0))
                self._timers[ask.id] = self._clock.call_at(due, self._ask, key, ask)

    def close(self) -> None:
        """Stop asking."""
        for timer in self._timers.values():
            timer.cancel()

    def _ask(self, key: Key, ask: HttpRequest) -> None:
        del self._timers[ask.id]
        body = self._answer(ask.url)
        at = self._clock.unix()
        self.answers[ask.id] = (
            HttpResponse(at, error="no route to host")
            if body is None
            else HttpResponse(at, 200, body)
        )
        self._due[ask.id] = self._clock.now + ask.interval
        self._answered(key)


class Operator:
    """One replica: it leads, or believes that it does, or is not there."""

    def __init__(
        self,
        name: str,
        server: ApiServer,
        clock: Clock,
        product: Controllers,
        answer: Callable[[str], Any],
        met: Callable[[str], None],
    ) -> None:
        self.name = name
        self._server = server
        self._clock = clock
        self._product = product
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
        self.questions = Questions(clock, self._answer, self.queue.add)
        self.cache = Cache(self.questions.answers)
        intake = EventHandlers(self.cache, self.queue, METRICS.handovers, self._product.on_deleted)
        self.sync = Relister(port, self.cache, intake, METRICS)
        self.reconciler = Reconciler(
            port,
            self.cache,
            intake,
            self.queue,
            self._product.plans,
            cast(HttpPoller, self.questions),
            EventRecorder(port, self.name, clock.moment),
            METRICS,
            self.leads,
            clock.moment,
            self._product.refused,
            self._confirm,
        )
        self.watches = {each.kind: self._watch(each, intake) for each in KINDS}
        self._unsubscribe = subscribe(self._server, self.watches)
        self._first()

    def stop(self) -> None:
        """The process is gone, whatever it was doing."""
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
        self.questions.close()

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
        return self._synced and self._run is None and self.queue.idle and not late

    def depose(self, seconds: float, deaf: bool) -> None:
        """It goes on as leader for a while, though it is none any more.

        Deaf: it hears no news either, as a process that was frozen or cut off. Else it hears all
        of it in time: one that knows of every new status, but not of the Jobs that came with it,
        could not be told from the leader by what it writes.
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
        """Work on what is due, as long as nothing has to be waited for."""
        for _ in range(MOST_AT_ONCE):
            if not (self.alive and self._synced and self._run is None and self.queue.depth):
                return
            key = drive(self.queue.take())
            assert key is not None
            self._run = key, self.reconciler.run(key)
            self._step(self._life)
        raise Violation(f"operator {self.name} reconciles {self.queue.depth} keys for ever")

    def relist(self) -> None:
        """List everything, as after a watch was interrupted and now and then."""
        if not (self.alive and self._synced):
            return
        try:
            for each in KINDS:
                drive(self.sync.list(each))
                if self._clock.now >= self.watches[each.kind].cut_until:
                    self.watches[each.kind].missed = False
        except ApiError:
            self._later(RETRY, self.relist)

    def cut(self, kind: str, seconds: float) -> None:
        """A watch is interrupted, and found to have been some time later."""
        if self.alive:
            self.watches[kind].cut(seconds)
            self._later(seconds + SETTLE, self.relist)

    def _first(self) -> None:
        try:
            for each in KINDS:
                drive(self.sync.list(each))
        except ApiError:
            self._later(RETRY, self._first)
            return
        self._synced = True
        self.cache.now_serves(frozenset((each.group, each.kind) for each in KINDS))
        for key in self._product.initial_keys(self.cache):
            self.queue.add(key)
        self._later(PERIOD, self._now_and_then)

    def _now_and_then(self) -> None:
        self.relist()
        self._later(PERIOD, self._now_and_then)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        life = self._life
        self._clock.after(seconds, lambda: call() if self.alive and self._life == life else None)

    def _watch(self, of: Resource, intake: EventHandlers) -> Watch:
        def tell(what: str, manifest: dict[str, Any]) -> None:
            (intake.removed if what == "DELETED" else intake.changed)(manifest)

        return Watch(self._clock, of, tell, self._met)

    def _step(self, life: int) -> None:
        """Go on with the reconcile that runs, up to its next wait or its end."""
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
