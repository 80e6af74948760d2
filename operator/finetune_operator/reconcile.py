"""From a key to the writes that it needs: load, plan, carry out.

The order is fixed: creates, applies, deletes, one status write, events, asks, next look. Children
have deterministic names, so a crash between any two steps is repaired by running the same plan
again; events come after the status that makes them true. Every answer to a write goes into the
cache at once, so the next plan sees it even when the watch is late.
"""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from finetune_operator.asks import Asks
from finetune_operator.cache import Cache
from finetune_operator.cluster import (
    AlreadyExists,
    Cluster,
    ClusterError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Unavailable,
    owner_uids,
)
from finetune_operator.decision import (
    HASH_ANNOTATION,
    JOB_NAME_LABEL,
    STAGE_LABEL,
    Decision,
    EventRecord,
    Key,
    Manifest,
    ObjectRef,
    View,
)
from finetune_operator.events import Events
from finetune_operator.intake import Intake
from finetune_operator.logs import tracing
from finetune_operator.metrics import Metrics
from finetune_operator.queue import MAX_DELAY, WorkQueue

log = logging.getLogger(__name__)

Plan = Callable[[Key, View, datetime], Decision | None]
"""What a key needs now; None when its object is not there. Pure."""

Refused = Callable[[Manifest, EventRecord, datetime], Mapping[str, Any] | None]
"""The status of an object for which the API server refuses a write; None to leave it alone."""

APPLIED_ANNOTATION = "finetune.dev/applied-hash"


@dataclass(frozen=True)
class Product:
    """What the engine runs: a plan per kind of key, and who cares about jobs that are gone."""

    plans: Mapping[str, Plan]
    refused: Mapping[str, Refused] = field(default_factory=dict)
    """How the objects of a kind tell what the API server refuses."""
    farewell: Callable[[Manifest], Key] | None = None
    """The key to look at when a FineTuneJob is gone."""
    orphans: Callable[[View], Iterable[Key]] = field(default=lambda _view: ())
    """Keys of jobs that went while no operator was running; asked once after the first lists."""


class NotLeading(ClusterError):
    """The Lease may be somebody else's by now: nothing may be written."""


class NameTaken(ClusterError):
    """A child's name is used by an object that is not ours or not the same."""


class Reconciler:
    """Carries out plans against one cluster."""

    def __init__(
        self,
        cluster: Cluster,
        cache: Cache,
        intake: Intake,
        queue: WorkQueue,
        plans: Mapping[str, Plan],
        asks: Asks,
        events: Events,
        metrics: Metrics,
        leads: Callable[[], bool],
        clock: Callable[[], datetime],
        refused: Mapping[str, Refused],
    ) -> None:
        self._cluster = cluster
        self._cache = cache
        self._intake = intake
        self._queue = queue
        self._plans = plans
        self._asks = asks
        self._events = events
        self._metrics = metrics
        self._leads = leads
        self._clock = clock
        self._refused = refused

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
            return "error"
        except ClusterError as error:
            log.warning("again in %.1f s: %s", self._queue.add_failed(key), error)
            await self._complain(key, error)
            return "error"
        except Exception:
            log.exception("the reconcile failed; again in %.1f s", self._queue.add_failed(key))
            return "error"
        self._queue.forget(key)
        if after is not None:
            self._queue.add_after(key, after)
            return "requeue_after"
        return "success"

    async def _reconcile(self, key: Key) -> float | None:
        loaded = self._cache.get(key.kind, key.namespace, key.name)
        decision = self._plans[key.kind](key, self._cache, self._clock())
        if decision is None:
            self._asks.want(key, ())
            return None
        wrote = await self._children(key, decision)
        if decision.status is not None and loaded is not None:
            wrote |= await self._status(key, loaded, decision.status)
        if loaded is not None:
            for event in decision.events:
                await self._write("create", "Event", self._events.record(loaded, event))
        self._asks.want(key, decision.asks)
        # What was just written is news that no watch will bring: the cache has it already.
        return 0.0 if wrote else decision.requeue_after

    async def _children(self, key: Key, decision: Decision) -> bool:
        wrote = False
        for manifest in decision.create:
            wrote |= await self._create(key, manifest)
        for manifest in decision.apply:
            wrote |= await self._apply(key, manifest)
        for ref in decision.delete:
            wrote |= await self._delete(ref)
        return wrote

    async def _create(self, key: Key, manifest: Manifest) -> bool:
        kind, metadata = manifest["kind"], manifest["metadata"]
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        known = self._cache.get(kind, namespace, name)
        if known is not None and _same(manifest, known):
            return False
        try:
            made = await self._write("create", kind, self._cluster.create(manifest))
        except AlreadyExists:
            made = await self._taken(manifest)
        else:
            labels = metadata.get("labels") or {}
            if kind == "Job" and STAGE_LABEL in labels:
                job = labels.get(JOB_NAME_LABEL, "")
                self._metrics.handovers.began(namespace, job, labels[STAGE_LABEL])
        self._intake.wrote(made, key)
        return True

    async def _taken(self, manifest: Manifest) -> Manifest:
        metadata = manifest["metadata"]
        what = f"{manifest['kind']} {metadata.get('namespace', '')}/{metadata['name']}"
        try:
            found = await self._cluster.get(
                manifest["kind"], metadata.get("namespace", ""), metadata["name"]
            )
        except NotFound as error:
            raise Conflict(f"{what} was there a moment ago") from error
        if not _same(manifest, found):
            raise NameTaken(
                f"{what} exists already and is not what this object needs; delete or rename it"
            )
        return found

    async def _apply(self, key: Key, manifest: Manifest) -> bool:
        kind, metadata = manifest["kind"], manifest["metadata"]
        wanted = _stamped(manifest)
        known = self._cache.get(kind, metadata.get("namespace", ""), metadata["name"])
        if known is not None and within(wanted, known):
            return False
        applied = await self._write("apply", kind, self._cluster.apply(wanted))
        return self._intake.wrote(
            applied, key
        )  # False when the server knew better that nothing differs

    async def _delete(self, ref: ObjectRef) -> bool:
        try:
            answer = await self._write("delete", ref.kind, self._cluster.delete(ref))
        except NotFound:
            answer = {}
        except Conflict as error:  # another object of that name: the one we meant is gone
            log.info("%s", error)
            answer = {}
        if answer.get("kind") == ref.kind:
            return self._cache.put(answer)  # it lingers: finalizers, or a pod's grace period
        known = self._cache.get(ref.kind, ref.namespace, ref.name)
        if known is not None and ref.uid in (None, known["metadata"]["uid"]):
            uid = known["metadata"]["uid"]
            return self._cache.remove(ref.kind, ref.namespace, ref.name, uid) is not None
        return False

    async def _status(self, key: Key, loaded: Manifest, wanted: Mapping[str, Any]) -> bool:
        difference = merge_patch(loaded.get("status") or {}, wanted)
        if not difference:
            return False
        metadata = loaded["metadata"]
        patch = {
            "metadata": {"resourceVersion": metadata["resourceVersion"]},
            "status": difference,
        }
        call = self._cluster.patch(
            loaded["kind"], metadata["namespace"], metadata["name"], patch, "status"
        )
        try:
            return self._intake.wrote(await self._write("status", loaded["kind"], call), key)
        except NotFound:  # deleted meanwhile: there is nothing to tell any more
            return False

    async def _write(self, verb: str, kind: str, call: Any) -> Any:
        """Every write passes here: none is sent once the Lease may be somebody else's."""
        if not self._leads():
            call.close()
            raise NotLeading("this process does not lead any more")
        try:
            answer = await call
        except ClusterError as error:
            self._metrics.writes.labels(verb, kind, type(error).__name__).inc()
            raise
        self._metrics.writes.labels(verb, kind, "ok").inc()
        return answer

    async def _complain(self, key: Key, error: ClusterError) -> None:
        """What a plan cannot know goes where the user looks: into the status, and an event."""
        about = self._cache.get(key.kind, key.namespace, key.name)
        if about is None or not self._leads():
            return
        reasons = {NameTaken: "NameTaken", Forbidden: "Forbidden", Invalid: "Refused"}
        event = EventRecord("Warning", reasons.get(type(error), "ApiError"), str(error))
        await self._events.record(about, event)
        refused = self._refused.get(key.kind)
        status = refused(about, event, self._clock()) if refused else None
        if status is None:
            return
        try:
            await self._status(key, about, status)
        except ClusterError as again:
            log.warning("the status does not tell that: %s", again)


def _same(manifest: Manifest, found: Manifest) -> bool:
    """Whether `found` is what creating `manifest` would have made: our owner, the same hash."""
    metadata = found["metadata"]
    if metadata.get("deletionTimestamp"):
        return False
    hashes = [
        (each["metadata"].get("annotations") or {}).get(HASH_ANNOTATION)
        for each in (manifest, found)
    ]
    return hashes[0] == hashes[1] and set(owner_uids(manifest)) <= set(owner_uids(found))


def _stamped(manifest: Manifest) -> Manifest:
    """The manifest with a hash of itself: by that a field that is no longer set shows, too."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
    metadata = manifest["metadata"]
    annotations = {**(metadata.get("annotations") or {}), APPLIED_ANNOTATION: digest}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def within(wanted: Any, found: Any) -> bool:
    """Whether every field that is set in `wanted` has that value in `found`.

    What the server adds to it (defaults, status, others' fields) does not count; lists must have
    equal length.
    """
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(
            key in found and within(value, found[key]) for key, value in wanted.items()
        )
    if isinstance(wanted, list | tuple):
        return (
            isinstance(found, list)
            and len(wanted) == len(found)
            and all(within(a, b) for a, b in zip(wanted, found, strict=True))
        )
    return bool(wanted == found) and isinstance(wanted, bool) == isinstance(found, bool)


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge-patch (RFC 7386) that makes `new` of `old`; {} when they are equal.

    None in `new` means absent: a merge-patch could not say anything else.
    """
    patch: dict[str, Any] = {key: None for key in old if new.get(key) is None}
    for key, value in new.items():
        before = old.get(key)
        if value is None:
            continue
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            if inner := merge_patch(before, value):
                patch[key] = inner
        elif not _equal(before, value):
            patch[key] = value
    return patch


def _equal(old: Any, new: Any) -> bool:
    """JSON equality: True is not 1."""
    return json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True)


async def finish(workers: asyncio.Task[None], seconds: float) -> None:
    """Give running reconciles some time to end, then cancel them."""
    _, pending = await asyncio.wait({workers}, timeout=seconds)
    if pending:
        log.warning("some reconciles did not end within %g s and are cancelled", seconds)
        workers.cancel()
        await asyncio.wait({workers}, timeout=2)
