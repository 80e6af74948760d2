"""What remains in the workspace after a FineTuneJob was deleted, and who removes it.

Kubernetes collects the children of a deleted job, but not its files. The engine keeps a
Workspace key for every deleted job until `reconcile_workspace` has nothing more to ask for.
"""

from collections.abc import Iterator
from datetime import datetime

from finetune_operator.decision import (
    JOB_NAME_LABEL,
    JOB_UID_LABEL,
    Decision,
    Key,
    Manifest,
    Settings,
    View,
)
from finetune_operator.jobs.conditions import is_terminal
from finetune_operator.names import artifact_path, artifact_uri, janitor_name, job_path
from finetune_operator.resources.janitor import janitor_job

RECHECK = 5.0
AFTER_FAILURE = 300.0
"""Seconds between janitors where one has failed; its Job is gone by then."""


def workspace_key(job: Manifest) -> Key:
    """The key to enqueue when a FineTuneJob is gone; its name is `<job name>/<job uid>`."""
    meta = job["metadata"]
    return Key("Workspace", meta["namespace"], f"{meta['name']}/{meta['uid']}")


def orphan_keys(view: View) -> tuple[Key, ...]:
    """Keys of deleted jobs whose children are still in the cache.

    Enqueue them once after the first listing: they are the jobs that were deleted while no
    operator was running. Nothing is lost if the same key is enqueued twice.
    """
    living = {job["metadata"]["uid"] for job in view.list("FineTuneJob")}
    keys: dict[Key, None] = {}
    for kind in ("Job", "Pod", "ConfigMap"):
        for child in view.list(kind):
            labels = child["metadata"].get("labels") or {}
            name, uid = labels.get(JOB_NAME_LABEL), labels.get(JOB_UID_LABEL)
            if name and uid and uid not in living:
                key = Key("Workspace", child["metadata"]["namespace"], f"{name}/{uid}")
                keys[key] = None
    return tuple(keys)


def reconcile_workspace(key: Key, view: View, settings: Settings, now: datetime) -> Decision:
    """What the files of a deleted job need now.

    A Decision without `requeue_after` means done: the key may be forgotten. Decisions carry no
    status. Reads from the View: FineTuneJob, ModelEndpoint, PersistentVolumeClaim, Pod, Job.
    """
    name, _, uid = key.name.partition("/")
    if not uid or _lives(view, key.namespace, name, uid):
        return Decision()
    if view.get("PersistentVolumeClaim", key.namespace, settings.workspace_claim) is None:
        return Decision()
    if view.labelled("Pod", key.namespace, JOB_UID_LABEL, uid):
        return Decision(requeue_after=RECHECK)
    janitor = view.get("Job", key.namespace, janitor_name(uid))
    if janitor is None:
        folders = list(_folders(view, key.namespace, name, uid, settings))
        job = janitor_job(key.namespace, name, uid, folders, settings)
        return Decision(create=(job,), requeue_after=RECHECK)
    if _has(janitor, "Complete"):
        return Decision()
    return Decision(requeue_after=AFTER_FAILURE if _has(janitor, "Failed") else RECHECK)


def _lives(view: View, namespace: str, name: str, uid: str) -> bool:
    job = view.get("FineTuneJob", namespace, name)
    return job is not None and job["metadata"]["uid"] == uid


def _folders(view: View, namespace: str, name: str, uid: str, settings: Settings) -> Iterator[str]:
    """The job's own folder, and its artifact unless an endpoint or another job may read it."""
    yield job_path(uid)
    uri = artifact_uri(settings.workspace_claim, name, uid)
    endpoints = view.list("ModelEndpoint", namespace)
    served = any(uri in _addresses(endpoint) for endpoint in endpoints)
    if not served and not any(
        _starts_from(job, uri) for job in view.list("FineTuneJob", namespace)
    ):
        yield artifact_path(name, uid)


def _starts_from(job: Manifest, uri: str) -> bool:
    """Whether a job that has not ended names the artifact as one of its sources."""
    spec = job.get("spec") or {}
    dataset = spec.get("dataset") or {}
    sources = [spec.get("model"), (spec.get("grpo") or {}).get("rewardModel")]
    sources += [*(dataset.get("train") or ()), dataset.get("validation")]
    named = [str(source.get("uri")) for source in sources if source]
    inside = any(address == uri or address.startswith(f"{uri}/") for address in named)
    return inside and not is_terminal(job)


def _addresses(endpoint: Manifest) -> Iterator[str | None]:
    spec, status = endpoint.get("spec") or {}, endpoint.get("status") or {}
    yield (spec.get("artifact") or {}).get("uri")
    for revision in status.get("revisions") or ():
        yield revision.get("uri")


def _has(job: Manifest, condition: str) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or ()
    return any(c.get("type") == condition and c.get("status") == "True" for c in conditions)
