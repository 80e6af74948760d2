"""From a key to the writes that it needs: load, plan, carry out.

The order is fixed: the status first, with the resourceVersion that the plan was made from, then
creates, applies, deletes, events, asks, next look. Where the status stays as it is, a patch that
changes nothing goes first in its place. So a leader that was deposed, or one that plans from an old
cache, is refused before it has touched anything. Children have deterministic names, so a crash
between any two steps is repaired by running the same plan again.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from finetune_operator.decision import Decision, EventRecord, Key, Manifest, View
from finetune_operator.engine.cache import Cache
from finetune_operator.engine.event_handlers import EventHandlers
from finetune_operator.engine.event_recorder import EventRecorder
from finetune_operator.engine.http_poller import HttpPoller
from finetune_operator.engine.kube_client import (
    ApiError,
    Conflict,
    Forbidden,
    Invalid,
    KubeClient,
    Unavailable,
)
from finetune_operator.engine.logs import tracing
from finetune_operator.engine.metrics import Metrics
from finetune_operator.engine.workqueue import MAX_DELAY, WorkQueue
from finetune_operator.engine.writer import Children, NameTaken, NotLeading, Writer

log = logging.getLogger(__name__)

Plan = Callable[[Key, View, datetime], Decision | None]
"""What a key needs now; None when its object is not there. Pure."""

Refused = Callable[[Manifest, EventRecord, datetime], Mapping[str, Any] | None]
"""The status of an object for which the API server refuses a write; None to leave it alone."""

REASONS: Mapping[type[ApiError], str] = {
    NameTaken: "NameTaken",
    Forbidden: "Forbidden",
    Invalid: "Refused",
}

PATIENCE = 8
"""Failures in a row, about ten seconds of them, after which a child that the API server cannot make
is told like one that it refuses: somebody's admission webhook may be down for days."""


@dataclass(frozen=True)
class Controllers:
    """What the engine runs: a plan per kind of key, and who cares about jobs that are gone."""

    plans: Mapping[str, Plan]
    refused: Mapping[str, Refused] = field(default_factory=dict)
    """How the objects of a kind tell what the API server refuses."""
    on_deleted: Callable[[Manifest], Key] | None = None
    """The key to look at when a FineTuneJob is gone."""
    initial_keys: Callable[[View], Iterable[Key]] = field(default=lambda _view: ())
    """Keys to look at for what went while no operator was running; asked after the first lists."""


class Reconciler:
    """Carries out plans against one cluster."""

    def __init__(
        self,
        cluster: KubeClient,
        cache: Cache,
        intake: EventHandlers,
        queue: WorkQueue,
        plans: Mapping[str, Plan],
        asks: HttpPoller,
        events: EventRecorder,
        metrics: Metrics,
        leads: Callable[[], bool],
        clock: Callable[[], datetime],
        refused: Mapping[str, Refused],
        confirm: Callable[[], Awaitable[bool]],
    ) -> None:
        self._cache = cache
        self._queue = queue
        self._plans = plans
        self._asks = asks
        self._events = events
        self._metrics = metrics
        self._leads = leads
        self._clock = clock
        self._refused = refused
        self._intake = intake
        self._writes = Writer(cluster, cache, intake, metrics, leads, confirm)
        self._refusals: dict[Key, str] = {}  # uids of those whose status tells of a refused child
        self._setbacks: Counter[Key] = Counter()  # failures of children since the last success

    async def run(self, key: Key) -> None:
        """Look at a key once. Errors end in the queue's back-off, never here."""
        started = time.monotonic()
        with tracing(key):
            result = await self._run(key)
        self._metrics.reconciles.labels(key.kind, result).inc()
        self._metrics.reconcile_seconds.labels(key.kind).observe(time.monotonic() - started)
        if result == "error":
            self._metrics.reconcile_errors.labels(key.kind).inc()

    async def _run(self, key: Key) -> str:
        leaving = self._intake.leaving(key)
        try:
            after = await self._reconcile(key)
        except NotLeading:
            return "not_leading"
        except Conflict as error:
            log.debug("planned from an old state: %s", error)
            self._queue.add_failed(key)
            return "conflict"
        except Unavailable as error:
            delay = self._queue.add_failed(key, min(error.retry_after or 0.0, MAX_DELAY))
            log.warning("again in %.1f s: %s", delay, error)
            if key in self._refusals and error.retry_after is None:
                await self._complain(key, "ApiError", str(error))
            return "error"
        except ApiError as error:
            log.warning("again in %.1f s: %s", self._queue.add_failed(key), error)
            await self._complain(key, REASONS.get(type(error), "ApiError"), str(error))
            return "error"
        except Exception as error:
            log.exception("the reconcile failed; again in %.1f s", self._queue.add_failed(key))
            text = f"the operator failed: {type(error).__name__}: {error}; its log has the details"
            await self._complain(key, "InternalError", text)
            return "error"
        self._queue.forget(key)
        self._setbacks.pop(key, None)
        self._intake.seen(key, leaving)
        if after is not None:
            self._queue.add_after(key, after)
            return "requeue_after"
        return "success"

    async def _reconcile(self, key: Key) -> float | None:
        loaded = self._cache.get(key.kind, key.namespace, key.name)
        decision = self._plans[key.kind](key, self._cache, self._clock())
        if decision is None:
            self._refusals.pop(key, None)
            self._asks.want(key, ())
            return None
        left = self._writes.left(decision)
        uid = loaded["metadata"]["uid"] if loaded is not None else None
        if uid is not None and self._refusals.get(key) == uid:
            wrote = await self._retold(key, loaded, decision, left)
        else:
            wrote = await self._status(key, loaded, decision)
            if left and not wrote:
                await self._writes.fence(loaded)
            try:
                wrote |= await self._writes.children(key, left)
            except ApiError as error:
                if uid is not None and self._lasts(key, error):
                    self._refusals[key] = uid
                raise
            finally:  # the status that makes them true is written, whatever came of the children
                await self._tell(loaded, decision)
        self._asks.want(key, decision.asks)
        # What was just written is news that no watch will bring: the cache has it already.
        return 0.0 if wrote else decision.requeue_after

    async def _retold(
        self, key: Key, loaded: Manifest | None, decision: Decision, left: Children
    ) -> bool:
        """What the API server refused, again; the status tells of that until it is settled."""
        if left:
            await self._writes.fence(loaded)
        wrote = await self._writes.children(key, left)
        self._refusals.pop(key, None)
        wrote |= await self._status(key, loaded, decision)
        await self._tell(loaded, decision)
        return wrote

    async def _status(self, key: Key, loaded: Manifest | None, decision: Decision) -> bool:
        if loaded is None or decision.status is None:
            return False
        return await self._writes.status(key, loaded, decision.status)

    async def _tell(self, loaded: Manifest | None, decision: Decision) -> None:
        if loaded is not None:
            for event in decision.events:
                log.info("%s: %s", event.reason, event.message)
                await self._writes.send("create", "Event", self._events.record(loaded, event))

    def _lasts(self, key: Key, error: ApiError) -> bool:
        """Whether the user has to know, because trying again does not help by itself."""
        if isinstance(error, Unavailable):
            self._setbacks[key] += 1
            return self._setbacks[key] >= PATIENCE
        return not isinstance(error, NotLeading | Conflict)

    async def _complain(self, key: Key, reason: str, message: str) -> None:
        """What a plan cannot know goes where the user looks: into the status, and an event."""
        about = self._cache.get(key.kind, key.namespace, key.name)
        if about is None or not self._leads():
            return
        event = EventRecord("Warning", reason, message)
        await self._events.record(about, event)
        refused = self._refused.get(key.kind)
        try:
            status = refused(about, event, self._clock()) if refused else None
            if status is not None:
                await self._writes.status(key, about, status)
        except ApiError as again:
            log.warning("the status does not tell that: %s", again)
        except Exception:
            log.exception("the status does not tell that")


async def finish(workers: asyncio.Task[None], seconds: float) -> None:
    """Give running reconciles some time to end, then cancel them."""
    _, pending = await asyncio.wait({workers}, timeout=seconds)
    if pending:
        log.warning("some reconciles did not end within %g s and are cancelled", seconds)
        workers.cancel()
        await asyncio.wait({workers}, timeout=2)
