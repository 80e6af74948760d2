"""An in-memory API server, with the semantics that matter to a controller.

resourceVersions count all writes, and a write without changes is none; generation counts changes of
the spec; the status is a subresource; deletion waits for finalizers and for a pod's grace period.
The same cases run against kube-apiserver (tests/api/test_conformance.py); conformance.py lists the
intended differences.

Objects are never changed once stored: every write makes new ones along its path, so that a
response, a watch event and the store can share what they have in common, without copies.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from finetune_operator.decision import Manifest
from finetune_operator.engine.kube_client import (
    AlreadyExists,
    Conflict,
    Invalid,
    NotFound,
    Unavailable,
)

from tests.sim.clock import Clock
from tests.sim.patches import applied, merged

Happening = Literal["ADDED", "MODIFIED", "DELETED"]
Listener = Callable[[Happening, Manifest, Manifest | None], None]
"""Called with what happened, the object as it is (or was last), and the object before."""
Admission = Callable[[Manifest, Manifest], str | None]
"""Why a change from the first to the second is refused; None lets it pass."""

WITHOUT_STATUS = {"ServingRuntime"}
OURS = {"FineTuneJob", "ModelEndpoint", "AcceleratorProfile"}
CUSTOM = {*OURS, "InferenceService", *WITHOUT_STATUS}
STATUS_APART = {"Job", "Pod", "Deployment", "Service", *CUSTOM} - WITHOUT_STATUS
UNSEEN = {"observedGeneration": -1}
FIRST_STATUS = {"Pod": {"phase": "Pending"}, "FineTuneJob": UNSEEN, "ModelEndpoint": UNSEEN}
COUNTS_GENERATIONS = {"Job", "Deployment", *CUSTOM}
SERVER_OWNED = ("uid", "creationTimestamp", "generation", "deletionTimestamp")
POD_GRACE = 30


class ApiServer:
    """Objects by kind, namespace and name."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.version = 100
        self._uids = 0
        self._kinds: defaultdict[str, dict[tuple[str, str], Manifest]] = defaultdict(dict)
        self._applied: dict[str, Manifest] = {}
        self.listeners: list[Listener] = []
        self.admission: dict[str, Admission] = {}

    def get(self, kind: str, namespace: str, name: str) -> Manifest:
        """One object; NotFound if it does not exist."""
        found = self.find(kind, namespace, name)
        if found is None:
            raise NotFound(f"{kind} {namespace}/{name}: 404 not found")
        return found

    def find(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """One object, or None."""
        return self._kinds[kind].get((namespace, name))

    def list(self, kind: str, namespace: str = "") -> list[Manifest]:
        """All objects of a kind, ordered by namespace and name."""
        found = self._kinds[kind]
        return [found[key] for key in sorted(found) if not namespace or key[0] == namespace]

    def create(self, manifest: Manifest) -> Manifest:
        """POST; AlreadyExists when the name is taken."""
        kind, meta = manifest["kind"], dict(manifest["metadata"])
        if meta.get("resourceVersion"):
            # kube-apiserver calls this mistake of its client an internal error.
            raise Unavailable(f"{kind}: resourceVersion should not be set on objects to be created")
        if self.find(kind, meta.get("namespace", ""), meta["name"]) is not None:
            raise AlreadyExists(f'{kind} "{meta["name"]}" already exists')
        for each in (*SERVER_OWNED, "deletionGracePeriodSeconds"):
            meta.pop(each, None)
        self._uids += 1
        meta["uid"] = f"{self._uids:08x}-5eed-4000-8000-000000000000"
        meta["creationTimestamp"] = self._clock.text()
        if kind in COUNTS_GENERATIONS:
            meta["generation"] = 1
        made = {**manifest, "metadata": meta}
        if kind in STATUS_APART:
            made.pop("status", None)
            if kind in FIRST_STATUS:
                made["status"] = FIRST_STATUS[kind]
        return self._store("ADDED", made, None)

    def restore(self, manifest: Manifest) -> Manifest:
        """Store an object as it is, uid and status included, as a restore of etcd does."""
        meta = manifest["metadata"]
        old = self.find(manifest["kind"], meta.get("namespace", ""), meta["name"])
        return self._store("ADDED" if old is None else "MODIFIED", manifest, old)

    def all_objects(self) -> Sequence[Manifest]:
        """Every object of every kind."""
        return [found for kind in self._kinds.values() for found in kind.values()]

    def replace(self, manifest: Manifest) -> Manifest:
        """PUT; Conflict when metadata.resourceVersion is no longer the newest."""
        kind, meta = manifest["kind"], manifest["metadata"]
        old = self.get(kind, meta.get("namespace", ""), meta["name"])
        if kind in CUSTOM and not meta.get("resourceVersion"):
            raise Invalid("metadata.resourceVersion: must be specified for an update")
        return self._update(old, manifest, meta)

    def patch(
        self, kind: str, namespace: str, name: str, patch: Mapping[str, Any], subresource: str = ""
    ) -> Manifest:
        """JSON merge-patch; a resourceVersion or uid in it is a precondition."""
        old = self.get(kind, namespace, name)
        wanted = patch.get("metadata") or {}
        if subresource == "status":
            self._check(old, wanted)
            status = merged(old.get("status") or {}, patch.get("status") or {})
            if status == (old.get("status") or {}):
                return old
            return self._store("MODIFIED", {**old, "status": status}, old)
        bare = {k: v for k, v in wanted.items() if k not in ("resourceVersion", "uid")}
        body = {k: v for k, v in patch.items() if k != "metadata"}
        return self._update(old, merged(old, {**body, "metadata": bare}), wanted)

    def apply(self, manifest: Manifest) -> Manifest:
        """Server-side apply with force; removes what the last apply had and this one lacks."""
        kind, meta = manifest["kind"], manifest["metadata"]
        old = self.find(kind, meta.get("namespace", ""), meta["name"])
        if old is None:
            if meta.get("resourceVersion") or meta.get("uid"):
                raise Conflict(f"{kind} {meta['name']} does not exist")
            made = self.create(manifest)
        else:
            before = self._applied.get(old["metadata"]["uid"], {})
            made = self._update(old, applied(old, before, manifest), meta)
        self._applied[made["metadata"]["uid"]] = manifest
        return made

    def delete(
        self,
        kind: str,
        namespace: str,
        name: str,
        uid: str | None = None,
        version: str | None = None,
        grace: int | None = None,
    ) -> Manifest:
        """Delete; returns the object while it lingers, else a Status."""
        old = self.get(kind, namespace, name)
        self._check(old, {"uid": uid, "resourceVersion": version})
        seconds = _grace(old, grace) if kind == "Pod" else 0
        meta = old["metadata"]
        if not seconds and not meta.get("finalizers"):
            self._remove(old)
            return {"kind": "Status", "status": "Success"}
        known = meta.get("deletionGracePeriodSeconds")
        if known is not None and seconds >= known:
            return old  # a later request may shorten the grace, never lengthen it
        meta = {**meta, "deletionTimestamp": self._clock.text(seconds)}
        meta["deletionGracePeriodSeconds"] = seconds
        if "generation" in meta and known is None:
            meta["generation"] += 1
        return self._store("MODIFIED", {**old, "metadata": meta}, old)

    def _check(self, old: Manifest, wanted: Mapping[str, Any]) -> None:
        for each in ("uid", "resourceVersion"):
            if wanted.get(each) not in (None, "", old["metadata"][each]):
                raise Conflict(f"{old['kind']} {old['metadata']['name']}: {each} is another")

    def _update(self, old: Manifest, new: Manifest, wanted: Mapping[str, Any]) -> Manifest:
        """Everything but the status; removes an object whose last finalizer is gone."""
        self._check(old, wanted)
        before, meta = old["metadata"], dict(new["metadata"])
        for each in (*SERVER_OWNED, "resourceVersion", "deletionGracePeriodSeconds"):
            meta.pop(each, None)
            if each in before:
                meta[each] = before[each]
        new = {**new, "metadata": meta}
        if old["kind"] in STATUS_APART:
            new.pop("status", None)
            if "status" in old:
                new["status"] = old["status"]
        self._admit(old, new)
        if "generation" in meta and new.get("spec") != old.get("spec"):
            meta["generation"] += 1
        if new == old:
            return old
        gone = meta.get("deletionTimestamp") and not meta.get("finalizers")
        if gone and not meta.get("deletionGracePeriodSeconds"):
            self._remove({**new, "metadata": meta})
            return new
        return self._store("MODIFIED", new, old)

    def _admit(self, old: Manifest, new: Manifest) -> None:
        meta, before = new["metadata"], old["metadata"]
        added = set(meta.get("finalizers") or ()) - set(before.get("finalizers") or ())
        if added and before.get("deletionTimestamp"):
            raise Invalid("metadata.finalizers: no new finalizers while being deleted")
        fixed = old["kind"] == "ConfigMap" and old.get("immutable")
        if fixed and (new.get("data"), new.get("immutable")) != (old.get("data"), True):
            raise Invalid("data: field is immutable when `immutable` is set")
        if old["kind"] == "Job" and not _same_job(old, new):
            raise Invalid("spec.template: field is immutable")
        why = self.admission[old["kind"]](old, new) if old["kind"] in self.admission else None
        if why is not None:
            raise Invalid(why)

    def _store(self, what: Happening, new: Manifest, old: Manifest | None) -> Manifest:
        self.version += 1
        meta = {**new["metadata"], "resourceVersion": str(self.version)}
        new = {**new, "metadata": meta}
        self._kinds[new["kind"]][meta.get("namespace", ""), meta["name"]] = new
        for listener in self.listeners:
            listener(what, new, old)
        return new

    def _remove(self, old: Manifest) -> None:
        self.version += 1
        meta = {**old["metadata"], "resourceVersion": str(self.version)}
        del self._kinds[old["kind"]][meta.get("namespace", ""), meta["name"]]
        self._applied.pop(meta["uid"], None)
        gone = {**old, "metadata": meta}
        for listener in self.listeners:
            listener("DELETED", gone, old)


def _grace(pod: Manifest, requested: int | None) -> int:
    """Seconds: none for a pod that no node has, or that has ended."""
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    if not spec.get("nodeName") or status.get("phase") in ("Succeeded", "Failed"):
        return 0
    return int(
        spec.get("terminationGracePeriodSeconds", POD_GRACE) if requested is None else requested
    )


def _same_job(old: Manifest, new: Manifest) -> bool:
    """Whether only what may change of a Job's spec does."""
    frozen = ("completions", "completionMode", "template", "selector")
    return all(old["spec"].get(each) == new["spec"].get(each) for each in frozen)
