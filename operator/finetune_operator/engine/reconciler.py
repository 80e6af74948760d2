"""Reconciler: from a key to the writes that it needs. Load, decide, carry out.

The order of a decision's writes is fixed: the status first, with the resourceVersion of the object
that the decision was made from, then creates, applies, deletes, events, HTTP requests, requeue. If
the status stays as it is, a patch that changes nothing takes its place. So the API server rejects a
leader that was deposed, or that decides on an outdated cache, before it has changed anything.
Children have deterministic names, so a crash between any two writes is repaired by deciding again.
`writer` sends the writes, `event_recorder` the events, and `http_poller` the requests.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime

from finetune_operator.decision import ControllerTable, Decision, EventRecord, Key, Manifest
from finetune_operator.engine.cache import Cache
from finetune_operator.engine.event_handlers import EventHandlers
from finetune_operator.engine.event_recorder import EventRecorder
from finetune_operator.engine.http_poller import HttpPoller
from finetune_operator.engine.kube_client import (
    ApiError,
    Conflict,
    Forbidden,
    Invalid,
    Unavailable,
)
from finetune_operator.engine.logs import tracing
from finetune_operator.engine.metrics import Metrics
from finetune_operator.engine.workqueue import MAX_DELAY, WorkQueue
from finetune_operator.engine.writer import ChildWrites, NameTaken, NotLeading, Writer

log = logging.getLogger(__name__)

REASONS: Mapping[type[ApiError], str] = {
    NameTaken: "NameTaken",
    Forbidden: "Forbidden",
    Invalid: "Refused",
}
"""By error of a write: the reason in the event and the condition. Others have ApiError."""

REPORT_AFTER_FAILURES = 8
"""Failures in a row, which take about ten seconds, after which a child that the API server cannot
create is reported like one that it rejects: an admission webhook may be down for days."""


class Reconciler:
    """Carries out decisions against one API server."""

    def __init__(
        self,
        controllers: ControllerTable,
        cache: Cache,
        queue: WorkQueue,
        event_handlers: EventHandlers,
        writer: Writer,
        http_poller: HttpPoller,
        event_recorder: EventRecorder,
        metrics: Metrics,
        clock: Callable[[], datetime],
    ) -> None:
        self._controllers = controllers
        self._cache = cache
        self._queue = queue
        self._event_handlers = event_handlers
        self._writer = writer
        self._http_poller = http_poller
        self._event_recorder = event_recorder
        self._metrics = metrics
        self._clock = clock
        self._rejected_uids: dict[Key, str] = {}  # of objects whose status reports a rejected child
        self._child_failures: Counter[Key] = Counter()  # since the last success

    async def reconcile(self, key: Key) -> None:
        """Reconcile a key once. An error is retried by the queue and not raised."""
        started = time.monotonic()
        with tracing(key):
            result = await self._reconcile_or_retry(key)
        self._metrics.reconciles.labels(key.kind, result).inc()
        self._metrics.reconcile_seconds.labels(key.kind).observe(time.monotonic() - started)
        if result == "error":
            self._metrics.reconcile_errors.labels(key.kind).inc()

    async def _reconcile_or_retry(self, key: Key) -> str:
        retained_pods = self._event_handlers.retained_pods(key)
        try:
            requeue_after = await self._decide_and_carry_out(key)
        except NotLeading:
            return "not_leading"
        except Conflict as error:
            log.debug("Decided on an outdated object, retrying", extra={"error": str(error)})
            self._queue.add_rate_limited(key)
            return "conflict"
        except ApiError as error:
            await self._retry_later(key, error)
            return "error"
        except Exception as error:
            delay = self._queue.add_rate_limited(key)
            extra = {"delay_seconds": round(delay, 1)}
            log.exception("Reconcile raised an exception, retrying", extra=extra)
            text = f"the operator failed: {type(error).__name__}: {error}; its log has the details"
            await self._report_problem(key, "InternalError", text)
            return "error"
        self._queue.forget(key)
        self._child_failures.pop(key, None)
        self._event_handlers.release_pods(key, retained_pods)
        if requeue_after is not None:
            self._queue.add_after(key, requeue_after)
            return "requeue_after"
        return "success"

    async def _retry_later(self, key: Key, error: ApiError) -> None:
        retry_after = error.retry_after if isinstance(error, Unavailable) else None
        delay = self._queue.add_rate_limited(key, min(retry_after or 0.0, MAX_DELAY))
        extra = {"delay_seconds": round(delay, 1), "error": str(error)}
        log.warning("Reconcile failed, retrying", extra=extra)
        is_outage = isinstance(error, Unavailable)
        if is_outage and (key not in self._rejected_uids or retry_after is not None):
            return
        await self._report_problem(key, REASONS.get(type(error), "ApiError"), str(error))

    async def _decide_and_carry_out(self, key: Key) -> float | None:
        loaded = self._cache.get(key.kind, key.namespace, key.name)
        decision = self._controllers.reconcile[key.kind](key, self._cache, self._clock())
        if decision is None:
            self._rejected_uids.pop(key, None)
            self._http_poller.set_requests(key, ())
            return None
        writes = self._writer.find_child_writes(decision)
        uid = loaded["metadata"]["uid"] if loaded is not None else None
        if uid is not None and self._rejected_uids.get(key) == uid:
            changed = await self._write_rejected_children(key, loaded, decision, writes)
        else:
            changed = await self._write_status(key, loaded, decision)
            if writes and not changed:
                await self._writer.check_fence(key, loaded)
            try:
                changed |= await self._writer.write_children(key, writes)
            except ApiError as error:
                if uid is not None and self._should_report(key, error):
                    self._rejected_uids[key] = uid
                raise
            finally:  # the status that makes them true is written, even if the children are not
                await self._record_events(loaded, decision)
        self._http_poller.set_requests(key, decision.requests)
        # The cache has our own writes already, so no watch will wake the key for them.
        return self._controllers.delay_of(key) if changed else decision.requeue_after

    async def _write_rejected_children(
        self, key: Key, loaded: Manifest | None, decision: Decision, writes: ChildWrites
    ) -> bool:
        """Write children that the API server rejected before. The status reports the rejection, so
        it is written last, once the children exist."""
        if writes:
            await self._writer.check_fence(key, loaded)
        changed = await self._writer.write_children(key, writes)
        self._rejected_uids.pop(key, None)
        changed |= await self._write_status(key, loaded, decision)
        await self._record_events(loaded, decision)
        return changed

    async def _write_status(self, key: Key, loaded: Manifest | None, decision: Decision) -> bool:
        if loaded is None or decision.status is None:
            return False
        return await self._writer.write_status(key, loaded, decision.status)

    async def _record_events(self, about: Manifest | None, decision: Decision) -> None:
        if about is None:
            return
        for event in decision.events:
            extra = {"reason": event.reason, "event_message": event.message}
            log.info("Recording an event", extra=extra)
            call = self._event_recorder.record(about, event)
            await self._writer.send("create", "Event", call)

    def _should_report(self, key: Key, error: ApiError) -> bool:
        """Whether a retry alone does not help, so that the user has to know."""
        if isinstance(error, Unavailable):
            self._child_failures[key] += 1
            return self._child_failures[key] >= REPORT_AFTER_FAILURES
        return not isinstance(error, NotLeading | Conflict)

    async def _report_problem(self, key: Key, reason: str, message: str) -> None:
        """Show the user in an event and in the status what no reconcile function can know."""
        about = self._cache.get(key.kind, key.namespace, key.name)
        if about is None or not self._writer.is_leader():
            return
        event = EventRecord("Warning", reason, message)
        await self._event_recorder.record(about, event)
        on_rejected = self._controllers.on_rejected.get(key.kind)
        try:
            status = on_rejected(about, event, self._clock()) if on_rejected else None
            if status is not None:
                await self._writer.write_status(key, about, status)
        except ApiError as error:
            log.warning("Cannot report the problem in the status", extra={"error": str(error)})
        except Exception:
            log.exception("Cannot report the problem in the status")
