"""Event handlers: put an object into the cache and enqueue the keys that it wakes.

Watches, lists and the answers to our own writes all end here. Nothing is decided and nothing is
awaited, so handling an event can neither fail nor block. Which keys an object wakes is in the table
of `finetune_operator.controllers`; `workqueue` hands them to the reconciler.

A pod that is deleted is gone a moment after its termination message appeared, and a watch may
deliver both changes as one. So a pod that has ended stays in the cache until a reconcile of
its job has seen it, and no pod of its attempt runs any more.
"""

from collections.abc import Iterable, Mapping, Sequence

from finetune_operator.decision import (
    ATTEMPT_LABEL,
    JOB_NAME_LABEL,
    JOB_UID_LABEL,
    STAGE_LABEL,
    ControllerTable,
    Key,
    Manifest,
)
from finetune_operator.engine.cache import Cache, address_of
from finetune_operator.engine.metrics import HandoverTimer
from finetune_operator.engine.workqueue import WorkQueue
from finetune_operator.manifest import has_pod_ended


class EventHandlers:
    """Feeds one cache and one work queue."""

    def __init__(
        self, cache: Cache, queue: WorkQueue, controllers: ControllerTable, handovers: HandoverTimer
    ) -> None:
        self._cache = cache
        self._queue = queue
        self._controllers = controllers
        self._handovers = handovers
        self._retained: dict[Key, dict[str, Manifest]] = {}
        """By job and uid, deleted pods that are kept for their termination messages."""

    def on_update(self, manifest: Manifest) -> bool:
        """The object was added or changed; whether the cache did not have it like this."""
        kind, namespace, name = address_of(manifest)
        old = self._cache.get(kind, namespace, name)
        if not self._cache.put(manifest):
            return False
        if kind == "Pod":
            self._record_stage_end(manifest, old)
        self.enqueue_keys_of(manifest, old)
        return True

    def on_write(self, manifest: Manifest, written_by: Key) -> bool:
        """The API server answered a write with this object; whether the cache did not have it.

        The watch delivers it too, but then the cache has it already: so the keys that it wakes are
        enqueued now, except the key whose reconcile wrote it.
        """
        old = self._cache.get(*address_of(manifest))
        if not self._cache.put(manifest):
            return False
        for key in self._controllers.keys_of(manifest, self._cache, old):
            if key != written_by:
                self._enqueue(key)
        return True

    def on_delete(self, manifest: Manifest) -> bool:
        """The object was deleted; whether the cache still had it."""
        if _is_ended_stage_pod(manifest) and self.on_update(manifest):
            pods = self._retained.setdefault(_job_key(manifest), {})
            pods[manifest["metadata"]["uid"]] = manifest
            return True
        kind, namespace, name = address_of(manifest)
        known = self._cache.remove(kind, namespace, name, manifest["metadata"]["uid"])
        if kind == "FineTuneJob":
            self._handovers.forget_job(namespace, name)
        for key in self._controllers.keys_of_deleted(manifest):
            self._enqueue(key)
        self.enqueue_keys_of(manifest)
        return known is not None

    def enqueue_keys_of(self, manifest: Manifest, old: Manifest | None = None) -> None:
        """Enqueue every key that the object wakes, given what it was before."""
        for key in self._controllers.keys_of(manifest, self._cache, old):
            self._enqueue(key)

    def _enqueue(self, key: Key) -> None:
        self._queue.add_after(key, self._controllers.delay_of(key))

    def retained_pods(self, key: Key) -> Sequence[Manifest]:
        """Deleted pods of a job that the cache keeps until the job has seen how they ended."""
        return tuple(self._retained.get(key, {}).values())

    def release_pods(self, key: Key, pods: Iterable[Manifest]) -> None:
        """A reconcile of the job has seen these pods and succeeded: remove those whose attempt is
        over."""
        for pod in pods:
            if self._is_attempt_over(pod):
                self._retained[key].pop(pod["metadata"]["uid"], None)
                self.on_delete(pod)
        if not self._retained.get(key, True):
            del self._retained[key]

    def _is_attempt_over(self, pod: Manifest) -> bool:
        metadata = pod["metadata"]
        siblings = self._cache.list_by_label(
            "Pod", metadata["namespace"], JOB_UID_LABEL, metadata["labels"].get(JOB_UID_LABEL, "")
        )
        attempt = _attempt_of(pod)
        return all(has_pod_ended(each) for each in siblings if _attempt_of(each) == attempt)

    def _record_stage_end(self, pod: Manifest, old: Manifest | None) -> None:
        if _is_ended_stage_pod(pod) and (old is None or not has_pod_ended(old)):
            job = _job_key(pod)
            stage, _ = _attempt_of(pod)
            self._handovers.record_stage_end(job.namespace, job.name, stage)


def _is_ended_stage_pod(manifest: Manifest) -> bool:
    labels: Mapping[str, str] = manifest["metadata"].get("labels") or {}
    return manifest["kind"] == "Pod" and JOB_NAME_LABEL in labels and has_pod_ended(manifest)


def _job_key(pod: Manifest) -> Key:
    metadata = pod["metadata"]
    return Key("FineTuneJob", metadata["namespace"], metadata["labels"][JOB_NAME_LABEL])


def _attempt_of(pod: Manifest) -> tuple[str, str]:
    labels = pod["metadata"]["labels"]
    return labels.get(STAGE_LABEL, ""), labels.get(ATTEMPT_LABEL, "")
