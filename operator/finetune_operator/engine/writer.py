"""Writer: every write of a decision, one object each, counted, and only while this process leads.

Two fences stand before a write. The first is local: none is sent once another process may hold the
Lease. A process that was frozen after it looked at its clock passes that fence, and so may one
whose watch is dead. The second is at the API server: the first write of a decision carries the
resourceVersion of the object that the decision was made from, and the API server rejects it when
any client has written the object since. What the API server answers goes to `event_handlers` at
once, so that the next reconcile sees it even if the watch is late.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_operator.decision import (
    JOB_NAME_LABEL,
    STAGE_LABEL,
    Decision,
    Key,
    Manifest,
    ObjectRef,
)
from finetune_operator.engine.cache import Cache, address_of, is_newer
from finetune_operator.engine.diff import (
    add_applied_hash,
    has_same_owner,
    is_same_child,
    is_subset,
    merge_patch,
)
from finetune_operator.engine.event_handlers import EventHandlers
from finetune_operator.engine.kube_client import (
    AlreadyExists,
    ApiError,
    Conflict,
    KubeClient,
    NotFound,
    Unavailable,
)
from finetune_operator.engine.metrics import Metrics

log = logging.getLogger(__name__)


class NotLeading(ApiError):
    """Another process holds, or may hold, the Lease: nothing may be written."""

    label = "NotLeading"


class NameTaken(ApiError):
    """A child's name is used by an object that is not ours or not the same."""

    label = "NameTaken"


@dataclass(frozen=True)
class ChildWrites:
    """The writes of a decision to children that the cache does not have as desired."""

    create: tuple[Manifest, ...]
    apply: tuple[Manifest, ...]
    delete: tuple[ObjectRef, ...]

    def __bool__(self) -> bool:
        return bool(self.create or self.apply or self.delete)


class Writer:
    """Writes to one API server and passes its answers to the event handlers."""

    def __init__(
        self,
        client: KubeClient,
        cache: Cache,
        event_handlers: EventHandlers,
        metrics: Metrics,
        is_leader: Callable[[], bool],
        confirm_leadership: Callable[[], Awaitable[bool]],
    ) -> None:
        self._client = client
        self._cache = cache
        self._event_handlers = event_handlers
        self._metrics = metrics
        self.is_leader = is_leader
        self._confirm_leadership = confirm_leadership

    def find_child_writes(self, decision: Decision) -> ChildWrites:
        """What is left to write if the cache is right."""
        desired = tuple(add_applied_hash(each) for each in decision.apply)
        return ChildWrites(
            tuple(each for each in decision.create if not self._is_cached(each, is_same_child)),
            tuple(each for each in desired if not self._is_cached(each, is_subset)),
            decision.delete,
        )

    async def write_children(self, key: Key, writes: ChildWrites) -> bool:
        """Creates, applies, deletes, in this order; whether they changed the cache."""
        changed = False
        for manifest in writes.create:
            changed |= await self._create(key, manifest)
        for manifest in writes.apply:
            changed |= await self._apply(key, manifest)
        for ref in writes.delete:
            changed |= await self._delete(ref)
        return changed

    async def write_status(self, key: Key, loaded: Manifest, desired: Mapping[str, Any]) -> bool:
        """Make `desired` the status of the object, as it was loaded; False if it is already.

        The result compares versions, not the cache: the watch may have been faster than the answer.
        """
        patch = merge_patch(loaded.get("status") or {}, desired)
        if not patch:
            return False
        answer = await self._patch("status", loaded, {"status": patch})
        self._event_handlers.on_write(answer, key)
        return is_newer(answer, loaded)

    async def check_fence(self, key: Key, loaded: Manifest | None) -> None:
        """Change nothing, but raise if another client has written the object since or another
        process leads.

        A patch that changes nothing is checked against the resourceVersion in it like any other. On
        an object without a status it stores the default of the status, so the cache gets the
        answer. A key without an object, such as a workspace, is checked against the Lease.
        """
        if loaded is not None:
            answer = await self._patch("fence", loaded, {})
            self._event_handlers.on_write(answer, key)
        elif not self.is_leader() or not await self._confirm_leadership():
            raise NotLeading("another process holds the lease")

    async def send(self, verb: str, kind: str, call: Any) -> Any:
        """Every write passes here: none is sent once another process may hold the Lease."""
        if not self.is_leader():
            call.close()
            raise NotLeading("this process does not lead any more")
        try:
            answer = await call
        except ApiError as error:
            self._metrics.writes.labels(verb, kind, error.label).inc()
            raise
        self._metrics.writes.labels(verb, kind, "ok").inc()
        return answer

    async def _patch(self, verb: str, loaded: Manifest, patch: Mapping[str, Any]) -> Manifest:
        kind, namespace, name = address_of(loaded)
        metadata = loaded["metadata"]
        fenced = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, **patch}
        call = self._client.patch(kind, namespace, name, fenced, "status")
        try:
            answer: Manifest = await self.send(verb, kind, call)
        except NotFound as error:
            raise Conflict(f"{kind} {namespace}/{name} was deleted meanwhile") from error
        return answer

    async def _create(self, key: Key, manifest: Manifest) -> bool:
        kind, metadata = manifest["kind"], manifest["metadata"]
        try:
            created = await self.send("create", kind, self._client.create(manifest))
        except AlreadyExists as error:
            created = await self._get_existing(key, manifest, error)
        else:
            labels = metadata.get("labels") or {}
            if kind == "Job" and STAGE_LABEL in labels:
                namespace, job = metadata.get("namespace", ""), labels.get(JOB_NAME_LABEL, "")
                self._metrics.handovers.record_stage_start(namespace, job, labels[STAGE_LABEL])
        self._event_handlers.on_write(created, key)
        return True

    async def _get_existing(self, key: Key, manifest: Manifest, why: AlreadyExists) -> Manifest:
        """The object that has the name, if it is the desired one."""
        kind, metadata = manifest["kind"], manifest["metadata"]
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        what = f"{kind} {namespace}/{name}"
        try:
            found = await self._client.get(kind, namespace, name)
        except NotFound as error:  # just deleted; or a quota or a webhook answered with 409
            raise Unavailable(f"{why}; but it does not exist") from error
        if is_same_child(manifest, found):
            return found
        if found["metadata"].get("deletionTimestamp"):
            raise Unavailable(f"{what} is being deleted; this continues when it is gone")
        if has_same_owner(manifest, found) and self._event_handlers.on_write(found, key):
            # Another version of this operator, or one with other settings, created it, and the
            # decision was made without it.
            raise Conflict(f"{what} was created meanwhile with another content")
        raise NameTaken(
            f"{what} exists already and is not what this object needs; delete or rename it"
        )

    async def _apply(self, key: Key, manifest: Manifest) -> bool:
        applied = await self.send("apply", manifest["kind"], self._client.apply(manifest))
        # False when the API server found that nothing differs.
        return self._event_handlers.on_write(applied, key)

    async def _delete(self, ref: ObjectRef) -> bool:
        try:
            answer = await self.send("delete", ref.kind, self._client.delete(ref))
        except NotFound:
            answer = {}
        except Conflict as error:  # another object has the name: the one that we meant is gone
            log.info("An object to delete was replaced meanwhile", extra={"error": str(error)})
            answer = {}
        if answer.get("kind") == ref.kind:
            return self._cache.put(answer)  # it still exists: finalizers, or a pod's grace period
        known = self._cache.get(ref.kind, ref.namespace, ref.name)
        if known is not None and ref.uid in (None, known["metadata"]["uid"]):
            uid = known["metadata"]["uid"]
            return self._cache.remove(ref.kind, ref.namespace, ref.name, uid) is not None
        return False

    def _is_cached(self, desired: Manifest, matches: Callable[[Manifest, Manifest], bool]) -> bool:
        metadata = desired["metadata"]
        known = self._cache.get(desired["kind"], metadata.get("namespace", ""), metadata["name"])
        return known is not None and matches(desired, known)
