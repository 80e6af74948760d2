"""Every write of the product's: one object each, counted, and only while this process leads.

Two fences stand before a write. The first is local: none is sent once the Lease may be somebody
else's. A process that was frozen between the look at its clock and the write passes that one, and
so may one whose watch is dead; the second asks the API server: the first write of a decision
carries the resourceVersion it was planned from and is refused when anybody has written since.
What an answer tells goes into the cache at once, so the next plan sees it even when the watch is
late.
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
from finetune_operator.engine.cache import Cache, newer
from finetune_operator.engine.diff import merge_patch, same_child, same_owner, stamped, within
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
    """The Lease is, or may be, somebody else's: nothing may be written."""


class NameTaken(ApiError):
    """A child's name is used by an object that is not ours or not the same."""


@dataclass(frozen=True)
class Children:
    """What of a decision is left to write when the cache is right."""

    create: tuple[Manifest, ...]
    apply: tuple[Manifest, ...]
    delete: tuple[ObjectRef, ...]

    def __bool__(self) -> bool:
        return bool(self.create or self.apply or self.delete)


class Writer:
    """Writes to one cluster and tells the cache what came of it."""

    def __init__(
        self,
        cluster: KubeClient,
        cache: Cache,
        intake: EventHandlers,
        metrics: Metrics,
        leads: Callable[[], bool],
        confirm: Callable[[], Awaitable[bool]],
    ) -> None:
        self._cluster = cluster
        self._cache = cache
        self._intake = intake
        self._metrics = metrics
        self._leads = leads
        self._confirm = confirm

    def left(self, decision: Decision) -> Children:
        """The children that the cache does not have as they are wanted."""
        wanted = tuple(stamped(each) for each in decision.apply)
        return Children(
            tuple(each for each in decision.create if not self._has(each, same_child)),
            tuple(each for each in wanted if not self._has(each, within)),
            decision.delete,
        )

    async def children(self, key: Key, left: Children) -> bool:
        """Creates, applies, deletes, in this order; whether anything changed by it."""
        wrote = False
        for manifest in left.create:
            wrote |= await self._create(key, manifest)
        for manifest in left.apply:
            wrote |= await self._apply(key, manifest)
        for ref in left.delete:
            wrote |= await self._delete(ref)
        return wrote

    async def status(self, key: Key, loaded: Manifest, wanted: Mapping[str, Any]) -> bool:
        """Make the status of the object, as it was loaded, the wanted one; False if it is.

        What counts is the version: the watch may have told the cache before the answer came.
        """
        difference = merge_patch(loaded.get("status") or {}, wanted)
        if not difference:
            return False
        answer = await self._patch("status", loaded, {"status": difference})
        self._intake.wrote(answer, key)
        return newer(answer, loaded)

    async def fence(self, loaded: Manifest | None) -> None:
        """Nothing, but refused when somebody else has written since or leads by now.

        A patch that changes nothing is checked against the resourceVersion in it like any other.
        What has no object of its own, such as the files of a deleted job, has the Lease.
        """
        if loaded is not None:
            await self._patch("fence", loaded, {})
        elif not self._leads() or not await self._confirm():
            raise NotLeading("the lease is somebody else's")

    async def _patch(self, verb: str, loaded: Manifest, patch: Mapping[str, Any]) -> Manifest:
        kind, metadata = loaded["kind"], loaded["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        fenced = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, **patch}
        call = self._cluster.patch(kind, namespace, name, fenced, "status")
        try:
            answer: Manifest = await self.send(verb, kind, call)
        except NotFound as error:
            raise Conflict(f"{kind} {namespace}/{name} was deleted meanwhile") from error
        return answer

    async def _create(self, key: Key, manifest: Manifest) -> bool:
        kind, metadata = manifest["kind"], manifest["metadata"]
        try:
            made = await self.send("create", kind, self._cluster.create(manifest))
        except AlreadyExists as error:
            made = await self._taken(key, manifest, error)
        else:
            labels = metadata.get("labels") or {}
            if kind == "Job" and STAGE_LABEL in labels:
                namespace, job = metadata.get("namespace", ""), labels.get(JOB_NAME_LABEL, "")
                self._metrics.handovers.began(namespace, job, labels[STAGE_LABEL])
        self._intake.wrote(made, key)
        return True

    async def _taken(self, key: Key, manifest: Manifest, why: AlreadyExists) -> Manifest:
        """The object that has the name, if it is the one we wanted to create."""
        kind, metadata = manifest["kind"], manifest["metadata"]
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        what = f"{kind} {namespace}/{name}"
        try:
            found = await self._cluster.get(kind, namespace, name)
        except NotFound as error:  # it has just gone; or a quota, or somebody's webhook, said 409
            raise Unavailable(f"{why}; but there is none") from error
        if same_child(manifest, found):
            return found
        if found["metadata"].get("deletionTimestamp"):
            raise Unavailable(f"{what} is being deleted; this goes on when it is gone")
        if same_owner(manifest, found) and self._intake.wrote(found, key):
            # Made by us in another version, or with other settings, and news to the plan.
            raise Conflict(f"{what} was made meanwhile, and not like this")
        raise NameTaken(
            f"{what} exists already and is not what this object needs; delete or rename it"
        )

    async def _apply(self, key: Key, manifest: Manifest) -> bool:
        applied = await self.send("apply", manifest["kind"], self._cluster.apply(manifest))
        # False when the server knew better that nothing differs.
        return self._intake.wrote(applied, key)

    async def _delete(self, ref: ObjectRef) -> bool:
        try:
            answer = await self.send("delete", ref.kind, self._cluster.delete(ref))
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

    async def send(self, verb: str, kind: str, call: Any) -> Any:
        """Every write passes here: none is sent once the Lease may be somebody else's."""
        if not self._leads():
            call.close()
            raise NotLeading("this process does not lead any more")
        try:
            answer = await call
        except ApiError as error:
            self._metrics.writes.labels(verb, kind, type(error).__name__).inc()
            raise
        self._metrics.writes.labels(verb, kind, "ok").inc()
        return answer

    def _has(self, wanted: Manifest, enough: Callable[[Manifest, Manifest], bool]) -> bool:
        metadata = wanted["metadata"]
        known = self._cache.get(wanted["kind"], metadata.get("namespace", ""), metadata["name"])
        return known is not None and enough(wanted, known)
