"""What becomes of news about an object: into the cache, and the keys that care into the queue.

Watches and lists both end here. Nothing is decided and nothing is awaited, so an event can
neither fail nor wait. Which key cares is read from the object alone or, for what many jobs may
wait for (claims, profiles, endpoints), from the cache.

A pod that is told to go is gone a moment after it has told how it ended, and a watch may bring both
as one. So one that has ended stays in the cache until a reconcile of its job has seen it, and none
of its attempt runs any more.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from finetune_operator.decision import (
    ATTEMPT_LABEL,
    ENDPOINT_LABEL,
    JOB_NAME_LABEL,
    JOB_UID_LABEL,
    STAGE_LABEL,
    Key,
    Manifest,
    View,
)
from finetune_operator.engine.cache import Cache, address_of
from finetune_operator.engine.metrics import Handover
from finetune_operator.engine.workqueue import WorkQueue
from finetune_operator.names import JANITOR

TERMINAL = ("Succeeded", "Failed")


class EventHandlers:
    """Feeds one cache and one queue."""

    def __init__(
        self,
        cache: Cache,
        queue: WorkQueue,
        handovers: Handover,
        farewell: Callable[[Manifest], Key] | None = None,
    ) -> None:
        self._cache = cache
        self._queue = queue
        self._handovers = handovers
        self._farewell = farewell
        self._leaving: dict[Key, dict[str, Manifest]] = {}
        """By job and uid, pods that are gone but for their last words."""

    def changed(self, manifest: Manifest) -> bool:
        """The object exists like this; whether that was news."""
        kind, namespace, name = address_of(manifest)
        old = self._cache.get(kind, namespace, name)
        if not self._cache.put(manifest):
            return False
        if kind == "Pod":
            self._note_end(manifest, old)
        self.wake(manifest)
        return True

    def wrote(self, manifest: Manifest, by: Key) -> bool:
        """We made the object like this; whether that was news.

        The watch will bring it too, but as nothing new: so whoever cares is told now, but for the
        key that wrote it.
        """
        if not self._cache.put(manifest):
            return False
        for key in keys_of(manifest, self._cache):
            if key != by:
                self._queue.add(key)
        return True

    def removed(self, manifest: Manifest) -> bool:
        """The object is gone; whether that was news."""
        if _has_last_words(manifest) and self.changed(manifest):
            key, uid = _job_of(manifest), manifest["metadata"]["uid"]
            self._leaving.setdefault(key, {})[uid] = manifest
            return True
        kind, namespace, name = address_of(manifest)
        known = self._cache.remove(kind, namespace, name, manifest["metadata"]["uid"])
        if kind == "FineTuneJob":
            self._handovers.forget(namespace, name)
            if self._farewell is not None:
                self._queue.add(self._farewell(manifest))
        self.wake(manifest)
        return known is not None

    def leaving(self, key: Key) -> Sequence[Manifest]:
        """Pods of a job that are gone and still in the cache, for it to see how they ended."""
        return tuple(self._leaving.get(key, {}).values())

    def seen(self, key: Key, pods: Iterable[Manifest]) -> None:
        """A reconcile of the job has seen these, and succeeded: those it is done with may go."""
        for pod in pods:
            if self._last_of_attempt(pod):
                self._leaving[key].pop(pod["metadata"]["uid"], None)
                self.removed(pod)
        if not self._leaving.get(key, True):
            del self._leaving[key]

    def _last_of_attempt(self, pod: Manifest) -> bool:
        meta = pod["metadata"]
        fellows = self._cache.labelled(
            "Pod", meta["namespace"], JOB_UID_LABEL, meta["labels"].get(JOB_UID_LABEL, "")
        )
        return all(_ended(each) for each in fellows if _attempt_of(each) == _attempt_of(pod))

    def wake(self, manifest: Manifest) -> None:
        """Whoever cares about the object should look at it."""
        for key in keys_of(manifest, self._cache):
            self._queue.add(key)

    def _note_end(self, pod: Manifest, old: Manifest | None) -> None:
        labels: Mapping[str, str] = pod["metadata"].get("labels") or {}
        if _ended(pod) and (old is None or not _ended(old)) and JOB_NAME_LABEL in labels:
            self._handovers.ended(
                pod["metadata"]["namespace"], labels[JOB_NAME_LABEL], labels.get(STAGE_LABEL, "")
            )


def keys_of(manifest: Manifest, view: View) -> Iterator[Key]:
    """The keys that may want something else now that this object changed or went."""
    kind, namespace, name = address_of(manifest)
    if kind == "FineTuneJob":
        yield Key("FineTuneJob", namespace, name)
        if (manifest.get("status") or {}).get("phase") in (None, "", *TERMINAL):
            yield Key("Workspace", namespace, JANITOR)
    elif kind == "ModelEndpoint":
        yield Key("ModelEndpoint", namespace, name)
        yield Key("Workspace", namespace, JANITOR)
        for job in _unfinished(view, namespace):
            if ((job.get("spec") or {}).get("serve") or {}).get("endpoint") == name:
                yield _key("FineTuneJob", job)
    elif kind == "AcceleratorProfile":
        yield from _waiting(view, None)
    else:
        yield from _owners(manifest, view)
        if kind == "PersistentVolumeClaim":
            yield Key("Workspace", namespace, JANITOR)
            yield from _waiting(view, namespace)


def _owners(child: Manifest, view: View) -> Iterator[Key]:
    labels: Mapping[str, str] = child["metadata"].get("labels") or {}
    namespace = child["metadata"].get("namespace", "")
    if child["kind"] == "Job" and child["metadata"]["name"] == JANITOR:
        yield Key("Workspace", namespace, JANITOR)
    if endpoint := labels.get(ENDPOINT_LABEL):
        yield Key("ModelEndpoint", namespace, endpoint)
    if job := labels.get(JOB_NAME_LABEL):
        yield Key("FineTuneJob", namespace, job)
        uid = labels.get(JOB_UID_LABEL)
        known = view.get("FineTuneJob", namespace, job)
        if uid and (known is None or known["metadata"]["uid"] != uid):
            # Its folder is kept as long as anything of it is there.
            yield Key("Workspace", namespace, JANITOR)


def _waiting(view: View, namespace: str | None) -> Iterator[Key]:
    for job in _unfinished(view, namespace):
        yield _key("FineTuneJob", job)
    for endpoint in view.list("ModelEndpoint", namespace):
        yield _key("ModelEndpoint", endpoint)


def _unfinished(view: View, namespace: str | None) -> Iterator[Manifest]:
    for job in view.list("FineTuneJob", namespace):
        if (job.get("status") or {}).get("phase") not in TERMINAL:
            yield job


def _key(kind: Any, manifest: Manifest) -> Key:
    return Key(kind, manifest["metadata"]["namespace"], manifest["metadata"]["name"])


def _has_last_words(manifest: Manifest) -> bool:
    labels: Mapping[str, str] = manifest["metadata"].get("labels") or {}
    return manifest["kind"] == "Pod" and JOB_NAME_LABEL in labels and _ended(manifest)


def _job_of(pod: Manifest) -> Key:
    meta = pod["metadata"]
    return Key("FineTuneJob", meta["namespace"], meta["labels"][JOB_NAME_LABEL])


def _attempt_of(pod: Manifest) -> tuple[str, str]:
    labels = pod["metadata"]["labels"]
    return labels.get(STAGE_LABEL, ""), labels.get(ATTEMPT_LABEL, "")


def _ended(pod: Manifest) -> bool:
    return (pod.get("status") or {}).get("phase") in TERMINAL
