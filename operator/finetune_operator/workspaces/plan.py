"""What is no longer needed in the workspace of a namespace, and when a janitor removes it.

Everything follows from the cluster's state. What is needed: the folders of jobs that exist or have
a child left (a pod in its grace period, or on a dead node, still writes), artifacts that endpoints
serve or follow, those that nonterminal jobs name, and models that nonterminal jobs use. A ledger,
written when something is added, records what was needed since the last janitor started: if some of
that is not needed any more, a janitor is due, whether an operator was running at that time or not.
Folders of jobs in the ledger are removed at once, as a uid is never used again. One more janitor
follows when the grace period of artifacts that nothing names is over, and otherwise one runs every
day, as unused models and retained artifacts expire. The very first one marks the volume as this
claim's.

How long an artifact is retained once nothing names it is stored in its folder, because its job may
be gone. That time begins again after a reference, also after one that no janitor has seen: the list
has the artifacts of the ledger that are not needed any more. They stay in the ledger with a leading
plus until a janitor has completed. A user can end that time by an annotation of the claim, which
names artifacts: they are removed as soon as nothing needs them. The ledger has them too, with a
leading minus, so that a new one makes a janitor due.

The janitor gets the list of what is needed when it is created. What a job or an endpoint names
after that may be missing from the list: see `check_janitor`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from finetune_operator.decision import (
    JOB_UID_LABEL,
    Decision,
    Key,
    Manifest,
    Settings,
    View,
)
from finetune_operator.manifest import (
    find_condition,
    is_finished,
    is_terminal,
    object_ref,
    parse_time,
)
from finetune_operator.names import (
    JANITOR,
    WORKSPACE_ARTIFACTS,
    WORKSPACE_MODELS,
    artifact_folder,
    job_entry,
    model_path,
)
from finetune_operator.resources.janitor import (
    LEDGER_KEY,
    LIST_SECONDS,
    MARGIN_SECONDS,
    REPEAT_ANNOTATION,
    build_janitor_job,
    build_ledger,
    parse_keep_list,
)
from finetune_operator.stalled import Stalled

RELEASE_ANNOTATION = "finetune.dev/release-artifacts"
"""Annotation of the workspace's claim: addresses of artifacts, separated by spaces."""
RECHECK = 15.0
PERIOD = timedelta(days=1)
REPEAT_AFTER = timedelta(seconds=MARGIN_SECONDS + LIST_SECONDS)
SPACING = timedelta(minutes=1)
"""Least time between two janitors, however often jobs are created and deleted."""
FIRST_AFTER = timedelta(minutes=10)
"""Age of a ledger without a janitor: the first job starts undisturbed, and the volume is marked as
this claim's before any folder in it is old."""
AFTER_FAILURE = timedelta(hours=1)
STUCK_AFTER = timedelta(seconds=2 * LIST_SECONDS)
"""Age of a janitor that a queue or a quota has not let start: its list is of no use."""


def workspace_key(manifest: Manifest) -> Key:
    """The key to enqueue when something in the object's namespace may not be needed any more."""
    return Key("Workspace", manifest["metadata"]["namespace"], JANITOR)


def workspace_keys(view: View, settings: Settings) -> Iterator[Key]:
    """The keys of all workspaces, to be enqueued once after the first lists."""
    for claim in view.list("PersistentVolumeClaim"):
        if claim["metadata"]["name"] == settings.workspace_claim:
            yield workspace_key(claim)


def reconcile_workspace(key: Key, view: View, settings: Settings, now: datetime) -> Decision:
    """What the workspace of a namespace needs now. Decisions carry no status.

    Reads from the View: FineTuneJob, ModelEndpoint, PersistentVolumeClaim, Pod, Job, ConfigMap.
    """
    claim = view.get("PersistentVolumeClaim", key.namespace, settings.workspace_claim)
    if claim is None or not _is_usable(claim):
        return Decision()  # the next change of the claim enqueues the key again
    decision = _plan_janitor(key, view, claim, settings, now)
    jobs = {job["metadata"]["uid"] for job in view.list("FineTuneJob", key.namespace)}
    if all(uid in jobs for uid in _list_uids_of_children(view, key.namespace)):
        return decision
    # A deleted job has children left, and no event enqueues this key when the last one is gone.
    return replace(decision, requeue_after=min(RECHECK, decision.requeue_after or RECHECK))


def _plan_janitor(
    key: Key, view: View, claim: Manifest, settings: Settings, now: datetime
) -> Decision:
    """Create a janitor where one is due, after the deletion of the one before."""
    keep = frozenset(list_needed(view, key.namespace, settings))
    lasting = {entry for entry in keep if not entry.startswith(WORKSPACE_MODELS)}
    recorded = _read_ledger(view, key.namespace)
    gone = {entry for entry in recorded - lasting if entry[0] not in "+-"}
    recent = {entry for entry in recorded if entry.startswith("+")}
    released = set(_list_released(claim, settings))
    marked = {f"-{folder}" for folder in released}
    is_due = bool(gone or marked - recorded)
    last = view.get("Job", key.namespace, JANITOR)
    if last is None and not gone and (left := _seconds_to_first(view, key.namespace, now)) > 0:
        ledger = _update_ledger(view, key.namespace, recorded | lasting)
        return Decision(apply=ledger, requeue_after=left)
    if last is None:
        uid = claim["metadata"]["uid"]
        recent |= {f"+{entry}" for entry in gone if entry.startswith(WORKSPACE_ARTIFACTS)}
        gone |= {entry.removeprefix("+") for entry in recent}
        job = build_janitor_job(
            key.namespace, uid, keep, gone, now, settings, released, is_repeated=is_due
        )
        ledger = _update_ledger(view, key.namespace, lasting | marked | recent)
        return Decision(create=(job,), apply=ledger, requeue_after=RECHECK)
    if find_condition(last, "Complete").get("status") == "True":
        recorded -= recent
    ledger = _update_ledger(view, key.namespace, recorded | lasting)
    left = _seconds_to_next(last, is_due, now)
    if left > 0:
        return Decision(apply=ledger, requeue_after=left)
    delete = () if last["metadata"].get("deletionTimestamp") else (object_ref(last),)
    return Decision(apply=ledger, delete=delete, requeue_after=RECHECK)


def list_needed(view: View, namespace: str, settings: Settings) -> Iterator[str]:
    """Everything that must stay: `jobs/<uid8>`, `artifacts/<folder>`, `models/<key>`."""
    for job in view.list("FineTuneJob", namespace):
        yield job_entry(job["metadata"]["uid"])
        if not is_terminal(job):
            yield from _list_sources(job, settings)
    for uid in _list_uids_of_children(view, namespace):
        yield job_entry(uid)
    for endpoint in view.list("ModelEndpoint", namespace):
        yield from artifact_folders(_list_served_uris(endpoint), settings)


def artifact_folders(uris: Iterable[str], settings: Settings) -> Iterator[str]:
    """The folders of the workspace's artifacts among these addresses."""
    for uri in uris:
        if folder := artifact_folder(uri, settings.workspace_claim):
            yield folder


def check_janitor(
    view: View, namespace: str, uris: Iterable[str], settings: Settings
) -> Stalled | None:
    """Why an artifact must not be used yet: a janitor runs whose list does not have it.

    The janitor may be about to remove the artifact, or not. When it has ended, the artifact exists
    and stays, or is gone and no pod has begun to read it.
    """
    janitor = view.get("Job", namespace, JANITOR)
    if janitor is None or is_finished(janitor):
        return None
    kept = parse_keep_list(janitor)
    for folder in artifact_folders(uris, settings):
        if folder not in kept and job_entry(folder[-8:]) not in kept:
            return Stalled(
                "WaitingForJanitor",
                f"Job {JANITOR} cleans the workspace and its list of what to keep lacks {folder}; "
                "this continues when it has ended",
            )
    return None


def _is_usable(claim: Manifest) -> bool:
    is_bound = (claim.get("status") or {}).get("phase") == "Bound"
    return is_bound and not claim["metadata"].get("deletionTimestamp")


def _list_uids_of_children(view: View, namespace: str) -> Iterator[str]:
    """The uids of jobs that have a Pod or a Job; the job itself may be deleted."""
    for kind in ("Pod", "Job"):
        for child in view.list(kind, namespace):
            if uid := (child["metadata"].get("labels") or {}).get(JOB_UID_LABEL):
                yield uid


def _list_sources(job: Manifest, settings: Settings) -> Iterator[str]:
    """The artifacts and models that a job reads."""
    spec: dict[str, Any] = job.get("spec") or {}
    dataset = spec.get("dataset") or {}
    models = [spec.get("model"), (spec.get("grpo") or {}).get("rewardModel")]
    data = [*(dataset.get("train") or ()), dataset.get("validation")]
    adapter = (spec.get("model") or {}).get("adapter")
    uris = (str(each.get("uri")) for each in (*models, adapter, *data) if each)
    yield from artifact_folders(uris, settings)
    for model in models:
        if model:
            yield model_path(str(model.get("uri")), model.get("revision"))


def _list_served_uris(endpoint: Manifest) -> Iterator[str]:
    spec, status = endpoint.get("spec") or {}, endpoint.get("status") or {}
    yield str((spec.get("artifact") or {}).get("uri"))
    yield str((status.get("latest") or {}).get("uri"))
    for revision in status.get("revisions") or ():
        yield str(revision.get("uri"))


def _list_released(claim: Manifest, settings: Settings) -> Iterator[str]:
    """The folders of the artifacts whose retention a user has ended. The address of a file in an
    artifact, or of something else, releases nothing."""
    annotations = claim["metadata"].get("annotations") or {}
    for uri in annotations.get(RELEASE_ANNOTATION, "").split():
        for folder in artifact_folders((uri,), settings):
            if uri.rstrip("/") == f"pvc://{settings.workspace_claim}/{folder}":
                yield folder


def _read_ledger(view: View, namespace: str) -> set[str]:
    found = view.get("ConfigMap", namespace, JANITOR) or {}
    return set((found.get("data") or {}).get(LEDGER_KEY, "").split())


def _update_ledger(view: View, namespace: str, entries: set[str]) -> tuple[Manifest, ...]:
    """The ledger to apply; none where it has these entries already."""
    exists = view.get("ConfigMap", namespace, JANITOR) is not None
    if exists and _read_ledger(view, namespace) == entries:
        return ()
    return (build_ledger(namespace, entries),)


def _seconds_to_first(view: View, namespace: str, now: datetime) -> float:
    ledger = view.get("ConfigMap", namespace, JANITOR)
    if ledger is None:
        return FIRST_AFTER.total_seconds()
    created = parse_time(ledger["metadata"].get("creationTimestamp")) or now
    return (created + FIRST_AFTER - now).total_seconds()


def _seconds_to_next(last: Manifest, is_due: bool, now: datetime) -> float:
    """Seconds until the next janitor is due; RECHECK while the last one runs."""
    meta = last["metadata"]
    began = parse_time(meta.get("creationTimestamp")) or now
    if not is_finished(last):
        return RECHECK if now < began + STUCK_AFTER else 0.0
    if is_due:
        wait = SPACING
    elif (meta.get("annotations") or {}).get(REPEAT_ANNOTATION) == "true":
        wait = REPEAT_AFTER
    else:
        wait = PERIOD
    if find_condition(last, "Failed").get("status") == "True":
        wait = AFTER_FAILURE if is_due else min(wait, AFTER_FAILURE)
    return (began + wait - now).total_seconds()
