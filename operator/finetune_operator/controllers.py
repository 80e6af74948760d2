"""The table of controllers: which function serves which key, and which keys an object wakes.

| key                | reconcile function    | woken by                                   |
|--------------------|-----------------------|--------------------------------------------|
| FineTuneJob        | `reconcile_job`       | itself, its children, claims, specs of     |
|                    |                       | profiles, the endpoint it serves           |
| ModelEndpoint      | `reconcile_endpoint`  | itself, its children, claims, specs of     |
|                    |                       | profiles, jobs that have handed a model    |
|                    |                       | over to it                                 |
| AcceleratorProfile | `reconcile_profile`   | itself, specs of profiles, what changes    |
|                    |                       | their use: jobs, endpoints, training pods  |
| Workspace          | `reconcile_workspace` | new, terminal and deleted jobs, endpoints, |
|                    |                       | claims, the janitor                        |

For a job or an endpoint of which the API server rejects a write, `build_rejected_job_status` or
`build_rejected_endpoint_status` makes the status; a workspace has none, and a profile no children.

`main` gives this table to the engine, which imports none of the modules named here.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, Literal

from finetune_operator.acceleratorprofiles.plan import reconcile_profile
from finetune_operator.acceleratorprofiles.use import (
    get_endpoint_profile,
    get_job_use,
    holds_devices,
)
from finetune_operator.decision import (
    ENDPOINT_LABEL,
    JOB_NAME_LABEL,
    JOB_UID_LABEL,
    ControllerTable,
    Decision,
    Key,
    Manifest,
    Reconcile,
    Settings,
    View,
)
from finetune_operator.endpoints.plan import build_rejected_endpoint_status, reconcile_endpoint
from finetune_operator.exported_models import find_endpoint_name, is_handed_over
from finetune_operator.jobs.plan import build_rejected_job_status, reconcile_job
from finetune_operator.names import JANITOR
from finetune_operator.workspaces.plan import reconcile_workspace, workspace_key, workspace_keys

TERMINAL_PHASES = ("Succeeded", "Failed")
PROFILE_DELAY = 2.0
"""Seconds for which changes of what uses the profiles are collected into one status."""


def build_controllers(settings: Settings) -> ControllerTable:
    """The controllers of FineTuneJobs, ModelEndpoints and the workspaces of namespaces."""

    def reconcile_workspace_key(key: Key, view: View, now: datetime) -> Decision:
        return reconcile_workspace(key, view, settings, now)

    return ControllerTable(
        reconcile={
            "FineTuneJob": _with_object(reconcile_job, settings),
            "ModelEndpoint": _with_object(reconcile_endpoint, settings),
            "AcceleratorProfile": _with_object(reconcile_profile, settings),
            "Workspace": reconcile_workspace_key,
        },
        on_rejected={
            "FineTuneJob": build_rejected_job_status,
            "ModelEndpoint": build_rejected_endpoint_status,
        },
        keys_of=keys_of,
        keys_of_deleted=keys_of_deleted,
        initial_keys=lambda view: workspace_keys(view, settings),
        delays={"AcceleratorProfile": PROFILE_DELAY},
    )


def _with_object(
    reconcile: Callable[[Manifest, View, Settings, datetime], Decision], settings: Settings
) -> Reconcile:
    """The function called with the object of a key; a key whose object is gone needs nothing."""

    def reconcile_key(key: Key, view: View, now: datetime) -> Decision | None:
        found = view.get(key.kind, key.namespace, key.name)
        return None if found is None else reconcile(found, view, settings, now)

    return reconcile_key


def keys_of(manifest: Manifest, view: View, old: Manifest | None = None) -> Iterator[Key]:
    """The keys that may need another decision now that this object was changed or deleted; `old`
    is the object before the change, None where there is none."""
    return WOKEN_BY.get(manifest["kind"], _woken_by_child)(manifest, view, old)


def keys_of_deleted(manifest: Manifest) -> Iterator[Key]:
    """The workspace of a deleted job, whose files the janitor may remove now."""
    if manifest["kind"] == "FineTuneJob":
        yield workspace_key(manifest)


def _woken_by_job(job: Manifest, view: View, old: Manifest | None) -> Iterator[Key]:
    yield _key("FineTuneJob", job)
    if is_handed_over(job) and (endpoint := find_endpoint_name(job)):
        yield Key("ModelEndpoint", job["metadata"]["namespace"], endpoint)
    if (job.get("status") or {}).get("phase") in (None, "", *TERMINAL_PHASES):
        yield workspace_key(job)
    if old is None or get_job_use(old) != get_job_use(job):
        yield from _list_profiles(view)


def _woken_by_endpoint(endpoint: Manifest, view: View, old: Manifest | None) -> Iterator[Key]:
    yield _key("ModelEndpoint", endpoint)
    yield workspace_key(endpoint)
    metadata = endpoint["metadata"]
    for job in _list_nonterminal_jobs(view, metadata["namespace"]):
        if find_endpoint_name(job) == metadata["name"]:
            yield _key("FineTuneJob", job)
    if old is None or get_endpoint_profile(old) != get_endpoint_profile(endpoint):
        yield from _list_profiles(view)


def _woken_by_profile(profile: Manifest, view: View, old: Manifest | None) -> Iterator[Key]:
    yield _key("AcceleratorProfile", profile)
    if old is None or old.get("spec") != profile.get("spec"):
        # Not after a write of the status, of which there may be many.
        yield from _list_profiles(view)
        yield from _may_wait(view, None)


def _woken_by_claim(claim: Manifest, view: View, old: Manifest | None) -> Iterator[Key]:
    yield from _woken_by_child(claim, view, old)
    yield workspace_key(claim)
    yield from _may_wait(view, claim["metadata"]["namespace"])


def _woken_by_pod(pod: Manifest, view: View, old: Manifest | None) -> Iterator[Key]:
    yield from _woken_by_child(pod, view, old)
    if holds_devices(pod) if old is None else holds_devices(pod) != holds_devices(old):
        yield from _list_profiles(view)


def _woken_by_child(child: Manifest, view: View, _old: Manifest | None) -> Iterator[Key]:
    labels: Mapping[str, str] = child["metadata"].get("labels") or {}
    namespace = child["metadata"].get("namespace", "")
    if child["kind"] == "Job" and child["metadata"]["name"] == JANITOR:
        yield workspace_key(child)
    if endpoint := labels.get(ENDPOINT_LABEL):
        yield Key("ModelEndpoint", namespace, endpoint)
    if job := labels.get(JOB_NAME_LABEL):
        yield Key("FineTuneJob", namespace, job)
        uid = labels.get(JOB_UID_LABEL)
        known = view.get("FineTuneJob", namespace, job)
        if uid and (known is None or known["metadata"]["uid"] != uid):
            # The folder of a deleted job is kept for as long as one of its children exists.
            yield workspace_key(child)


WOKEN_BY: Mapping[str, Callable[[Manifest, View, Manifest | None], Iterator[Key]]] = {
    "FineTuneJob": _woken_by_job,
    "ModelEndpoint": _woken_by_endpoint,
    "AcceleratorProfile": _woken_by_profile,
    "PersistentVolumeClaim": _woken_by_claim,
    "Pod": _woken_by_pod,
}
"""By kind of object; every other kind is a child, whose labels name the keys."""


def _may_wait(view: View, namespace: str | None) -> Iterator[Key]:
    """Every key that may wait for a claim or a profile."""
    for job in _list_nonterminal_jobs(view, namespace):
        yield _key("FineTuneJob", job)
    for endpoint in view.list("ModelEndpoint", namespace):
        yield _key("ModelEndpoint", endpoint)


def _list_profiles(view: View) -> Iterator[Key]:
    for profile in view.list("AcceleratorProfile"):
        yield _key("AcceleratorProfile", profile)


def _list_nonterminal_jobs(view: View, namespace: str | None) -> Iterator[Manifest]:
    for job in view.list("FineTuneJob", namespace):
        if (job.get("status") or {}).get("phase") not in TERMINAL_PHASES:
            yield job


def _key(
    kind: Literal["FineTuneJob", "ModelEndpoint", "AcceleratorProfile"], manifest: Manifest
) -> Key:
    metadata: dict[str, Any] = manifest["metadata"]
    return Key(kind, metadata.get("namespace", ""), metadata["name"])
