"""The Job controller and the garbage collector, as far as they affect the operator.

A Job with backoffLimit 0 fails with its first failed or deleted pod, and its other pods are
deleted; a finished pod is kept by a finalizer until the controller has counted it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from finetune_operator.decision import Manifest
from finetune_operator.engine.kube_client import Conflict, NotFound
from finetune_operator.jobs.observe import INDEX_LABEL

from tests.sim.clock import Clock
from tests.sim.server import ApiServer, Happening

TRACKING = "batch.kubernetes.io/job-tracking"
QUOTA_REFUSAL = "is forbidden: exceeded quota: team"
OWNED = ("Job", "Pod", "ConfigMap", "Service", "Deployment")


class JobController:
    """Creates the pods of Jobs, and counts how they end."""

    def __init__(self, server: ApiServer, clock: Clock, met: Callable[[str], None]) -> None:
        self._server = server
        self._clock = clock
        self._met = met
        self._due: set[tuple[str, str]] = set()
        self._made: dict[str, int] = {}
        self._counted: dict[str, set[str]] = {}
        self._refusals: dict[str, int] = {}
        self.delay = 0.3
        self.quota: int | None = None
        """How many pods the namespace may have; None without a ResourceQuota."""
        server.listeners.append(self._seen)

    def _seen(self, _what: Happening, found: Manifest, _old: Manifest | None) -> None:
        meta = found["metadata"]
        if found["kind"] == "Job":
            key = meta["namespace"], meta["name"]
        elif found["kind"] == "Pod":
            key = meta["namespace"], meta["ownerReferences"][0]["name"]
        else:
            return
        if key not in self._due:
            self._due.add(key)
            self._clock.after(self.delay, self._sync, key)

    def _sync(self, key: tuple[str, str]) -> None:
        self._due.discard(key)
        job = self._server.find("Job", *key)
        uid = job["metadata"]["uid"] if job else ""
        pods = [p for p in self._server.list("Pod", key[0]) if _owner(p)["name"] == key[1]]
        for pod in pods:
            if _owner(pod)["uid"] != uid or _over(pod):
                self._release(pod)
        if job is None or job["metadata"].get("deletionTimestamp") or finished(job):
            return
        mine = [pod for pod in pods if _owner(pod)["uid"] == uid]
        wanted = int(job["spec"].get("completions", 1))
        good = [pod for pod in mine if pod["status"].get("phase") == "Succeeded"]
        bad = self._counted.setdefault(uid, set())
        bad |= {_uid(pod) for pod in mine if _failed(pod)}
        vanished = self._made.get(uid, 0) - len({_uid(p) for p in mine} | bad)
        if len(good) >= wanted:
            self._finish(job, "Complete", mine)
        elif len(bad) + vanished > int(job["spec"].get("backoffLimit", 6)):
            self._finish(job, "Failed", mine)
        elif not job["spec"].get("suspend"):
            self._create(job, wanted - len([pod for pod in mine if not _failed(pod)]))

    def _create(self, job: Manifest, missing: int) -> None:
        uid = job["metadata"]["uid"]
        for _ in range(missing):
            active = [pod for pod in self._server.list("Pod") if not _over(pod)]
            if self.quota is not None and len(active) >= self.quota:
                self._report_refusal(job)
                return
            number = self._made.get(uid, 0)
            self._made[uid] = number + 1
            self._server.create(_pod(job, number))

    def _report_refusal(self, job: Manifest) -> None:
        """By an event on the Job, whose count grows with each try; the tries become rarer."""
        self._met("quota refused a pod")
        meta = job["metadata"]
        times = self._refusals[meta["uid"]] = self._refusals.get(meta["uid"], 0) + 1
        space, name = meta["namespace"], f"{meta['name']}.{meta['uid']}"
        text = f'Error creating: pods "{meta["name"]}-{times:05}" {QUOTA_REFUSAL}'
        seen = {"lastTimestamp": self._clock.text(), "count": times, "message": text}
        if self._server.find("Event", space, name):
            self._server.patch("Event", space, name, seen)
        else:
            event = {
                "kind": "Event",
                "metadata": {"name": name, "namespace": space},
                "involvedObject": {"kind": "Job", "name": meta["name"], "uid": meta["uid"]},
                "reason": "FailedCreate",
            }
            self._server.create(event | seen)
        key = space, meta["name"]
        if key not in self._due:
            self._due.add(key)
            self._clock.after(min(2.0**times, 60.0), self._sync, key)

    def _finish(self, job: Manifest, kind: str, pods: list[Manifest]) -> None:
        meta = job["metadata"]
        condition = {"type": kind, "status": "True", "lastTransitionTime": self._clock.text()}
        status = {"conditions": [condition]}
        self._server.patch("Job", meta["namespace"], meta["name"], {"status": status}, "status")
        for pod in pods:
            if pod["status"].get("phase") in ("Pending", "Running"):
                _delete(self._server, pod)
        ttl = job["spec"].get("ttlSecondsAfterFinished")
        if ttl is not None:
            self._clock.after(ttl, _delete, self._server, job)

    def _release(self, pod: Manifest) -> None:
        if pod["metadata"].get("finalizers"):
            meta = pod["metadata"]
            patch = {"metadata": {"finalizers": None}}
            self._server.patch("Pod", meta["namespace"], meta["name"], patch)


class GarbageCollector:
    """Deletes objects whose owner is gone."""

    def __init__(self, server: ApiServer, clock: Clock) -> None:
        self._server = server
        self._clock = clock
        self._living: set[str] = set()
        self.delay = 0.4
        server.listeners.append(self._seen)

    def _seen(self, what: Happening, found: Manifest, _old: Manifest | None) -> None:
        uid = found["metadata"]["uid"]
        if what == "DELETED":
            self._living.discard(uid)
            self._clock.after(self.delay, self._collect, uid)
        elif what == "ADDED":
            self._living.add(uid)
            owners = found["metadata"].get("ownerReferences") or ()
            if owners and all(owner["uid"] not in self._living for owner in owners):
                self._clock.after(self.delay, _delete, self._server, found)

    def _collect(self, uid: str) -> None:
        for kind in OWNED:
            for found in self._server.list(kind):
                owners = found["metadata"].get("ownerReferences") or ()
                if any(owner["uid"] == uid for owner in owners):
                    _delete(self._server, found)


def finished(job: Manifest) -> bool:
    """Whether a Job is Complete or Failed."""
    return bool((job.get("status") or {}).get("conditions"))


def _delete(server: ApiServer, found: Manifest) -> None:
    meta = found["metadata"]
    try:
        server.delete(found["kind"], meta["namespace"], meta["name"], uid=meta["uid"])
    except (NotFound, Conflict):
        return


def _pod(job: Manifest, number: int) -> Manifest:
    meta, spec = job["metadata"], job["spec"]
    template: dict[str, Any] = spec["template"]
    labels = dict((template.get("metadata") or {}).get("labels") or {})
    if spec.get("completionMode") == "Indexed":
        labels[INDEX_LABEL] = str(number)
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"], "uid": meta["uid"]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{meta['name']}-{number}-{meta['uid'][:8]}",
            "namespace": meta["namespace"],
            "labels": labels,
            "annotations": {"sim/ranks": str(spec.get("completions", 1))},
            "ownerReferences": [{**owner, "controller": True}],
            "finalizers": [TRACKING],
        },
        "spec": template["spec"],
    }


def _owner(pod: Manifest) -> dict[str, Any]:
    found: dict[str, Any] = pod["metadata"]["ownerReferences"][0]
    return found


def _uid(pod: Manifest) -> str:
    return str(pod["metadata"]["uid"])


def _over(pod: Manifest) -> bool:
    """Whether it has ended, or is gone from its kubelet."""
    ended = pod["status"].get("phase") in ("Succeeded", "Failed")
    return ended or pod["metadata"].get("deletionGracePeriodSeconds") == 0


def _failed(pod: Manifest) -> bool:
    if pod["status"].get("phase") == "Succeeded":
        return False
    return pod["status"].get("phase") == "Failed" or "deletionTimestamp" in pod["metadata"]
