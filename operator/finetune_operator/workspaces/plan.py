"""What nobody needs any more in the workspace of a namespace, and when a janitor is to remove it.

Everything follows from the cluster's state. What is needed: the folders of jobs that exist or have
a child left (a pod in its grace period, or on a dead node, still writes), artifacts that endpoints
and unfinished jobs name, and models that unfinished jobs use. A ledger, written when something is
added, remembers what was needed since the last janitor was started: if some of that is not needed
any more, a janitor is due, whether anybody watched it go or not. Folders of jobs that the ledger
knew go at once, as a uid never comes back. One more janitor follows when artifacts that nothing
names have had their time of grace, and otherwise one runs every day, as models that are not used
expire. The very first one marks the volume as this claim's.

The janitor gets the list of what is needed at that time. What a job or an endpoint names after
that may be missing from it: see `check_janitor`.
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
from finetune_operator.names import JANITOR, WORKSPACE_MODELS, artifact_in, job_mark, model_path
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

RECHECK = 15.0
PERIOD = timedelta(days=1)
AGAIN = timedelta(seconds=MARGIN_SECONDS + LIST_SECONDS)
SPACING = timedelta(minutes=1)
"""Least time between two janitors, however fast jobs come and go."""
FIRST = timedelta(minutes=10)
"""Age of a ledger without a janitor: the first job starts undisturbed, and the volume is marked as
this claim's before any folder in it is old."""
AFTER_FAILURE = timedelta(hours=1)
STUCK = timedelta(seconds=2 * LIST_SECONDS)
"""Age of a janitor that a queue or a quota has not let start: its list is of no use."""


def workspace_key(about: Manifest) -> Key:
    """The key to enqueue when something in its namespace may have become needless."""
    return Key("Workspace", about["metadata"]["namespace"], JANITOR)


def workspace_keys(view: View, settings: Settings) -> Iterator[Key]:
    """The keys of all workspaces; enqueue them once after the first listing."""
    for claim in view.list("PersistentVolumeClaim"):
        if claim["metadata"]["name"] == settings.workspace_claim:
            yield workspace_key(claim)


def reconcile_workspace(key: Key, view: View, settings: Settings, now: datetime) -> Decision:
    """What the workspace of a namespace needs now. Decisions carry no status.

    Reads from the View: FineTuneJob, ModelEndpoint, PersistentVolumeClaim, Pod, Job, ConfigMap.
    """
    claim = view.get("PersistentVolumeClaim", key.namespace, settings.workspace_claim)
    if claim is None or not _usable(claim):
        return Decision()  # the claim's next change brings the key back
    decision = _cleaning(key, view, claim, settings, now)
    if not any(_leaving(view, key.namespace)):
        return decision
    # Their last pod goes without anybody being told.
    return replace(decision, requeue_after=min(RECHECK, decision.requeue_after or RECHECK))


def _cleaning(key: Key, view: View, claim: Manifest, settings: Settings, now: datetime) -> Decision:
    """Whether a janitor is due."""
    keep = frozenset(needed(view, key.namespace, settings))
    lasting = {entry for entry in keep if not entry.startswith(WORKSPACE_MODELS)}
    known = _known(view, key.namespace)
    gone = known - lasting
    last = view.get("Job", key.namespace, JANITOR)
    if last is None and not gone and (left := _time_to_first(view, key.namespace, now)) > 0:
        written = _ledger(view, key.namespace, known | lasting)
        return Decision(apply=written, requeue_after=left)
    if last is None:
        uid = claim["metadata"]["uid"]
        job = build_janitor_job(key.namespace, uid, keep, gone, now, settings)
        written = _ledger(view, key.namespace, lasting)
        return Decision(create=(job,), apply=written, requeue_after=RECHECK)
    written = _ledger(view, key.namespace, known | lasting)
    left = _time_left(last, bool(gone), now)
    if left > 0:
        return Decision(apply=written, requeue_after=left)
    delete = () if last["metadata"].get("deletionTimestamp") else (object_ref(last),)
    return Decision(apply=written, delete=delete, requeue_after=RECHECK)


def needed(view: View, namespace: str, settings: Settings) -> Iterator[str]:
    """Everything that must stay: `jobs/<uid8>`, `artifacts/<folder>`, `models/<key>`."""
    for job in view.list("FineTuneJob", namespace):
        yield job_mark(job["metadata"]["uid"])
        if not is_terminal(job):
            yield from _sources(job, settings)
    for uid in _with_children(view, namespace):
        yield job_mark(uid)
    for endpoint in view.list("ModelEndpoint", namespace):
        yield from artifacts(_addresses(endpoint), settings)


def _with_children(view: View, namespace: str) -> Iterator[str]:
    for kind in ("Pod", "Job"):
        for child in view.list(kind, namespace):
            if uid := (child["metadata"].get("labels") or {}).get(JOB_UID_LABEL):
                yield uid


def _leaving(view: View, namespace: str) -> Iterator[str]:
    """Deleted jobs of which something is left."""
    living = {job["metadata"]["uid"] for job in view.list("FineTuneJob", namespace)}
    return (uid for uid in _with_children(view, namespace) if uid not in living)


def artifacts(uris: Iterable[str], settings: Settings) -> Iterator[str]:
    """The artifacts of the workspace among these addresses."""
    for uri in uris:
        if folder := artifact_in(uri, settings.workspace_claim):
            yield folder


def check_janitor(
    view: View, namespace: str, uris: Iterable[str], settings: Settings
) -> Stalled | None:
    """Why an artifact must not be used yet: a janitor runs that does not know it is needed.

    It may be about to remove the artifact, or not. When it has ended, the artifact is there and
    stays, or is gone and nothing has begun to read it.
    """
    janitor = view.get("Job", namespace, JANITOR)
    if janitor is None or is_finished(janitor):
        return None
    known = parse_keep_list(janitor)
    for folder in artifacts(uris, settings):
        if folder not in known and f"jobs/{folder[-8:]}" not in known:
            return Stalled(
                "WaitingForJanitor",
                f"Job {JANITOR} cleans the workspace and was not told that {folder} is needed; "
                "this goes on when it has ended",
            )
    return None


def _usable(claim: Manifest) -> bool:
    bound = (claim.get("status") or {}).get("phase") == "Bound"
    return bound and not claim["metadata"].get("deletionTimestamp")


def _sources(job: Manifest, settings: Settings) -> Iterator[str]:
    spec: dict[str, Any] = job.get("spec") or {}
    dataset = spec.get("dataset") or {}
    models = [spec.get("model"), (spec.get("grpo") or {}).get("rewardModel")]
    rows = [*(dataset.get("train") or ()), dataset.get("validation")]
    yield from artifacts((str(each.get("uri")) for each in (*models, *rows) if each), settings)
    for model in models:
        if model:
            yield model_path(str(model.get("uri")), model.get("revision"))


def _addresses(endpoint: Manifest) -> Iterator[str]:
    spec, status = endpoint.get("spec") or {}, endpoint.get("status") or {}
    yield str((spec.get("artifact") or {}).get("uri"))
    for revision in status.get("revisions") or ():
        yield str(revision.get("uri"))


def _known(view: View, namespace: str) -> set[str]:
    found = view.get("ConfigMap", namespace, JANITOR) or {}
    return set((found.get("data") or {}).get(LEDGER_KEY, "").split())


def _ledger(view: View, namespace: str, kept: set[str]) -> tuple[Manifest, ...]:
    there = view.get("ConfigMap", namespace, JANITOR) is not None
    return () if there and _known(view, namespace) == kept else (build_ledger(namespace, kept),)


def _time_to_first(view: View, namespace: str, now: datetime) -> float:
    found = view.get("ConfigMap", namespace, JANITOR)
    if found is None:
        return FIRST.total_seconds()
    made = parse_time(found["metadata"].get("creationTimestamp")) or now
    return (made + FIRST - now).total_seconds()


def _time_left(last: Manifest, gone: bool, now: datetime) -> float:
    """Seconds until the next janitor is due; RECHECK where the last one is still at it."""
    meta = last["metadata"]
    began = parse_time(meta.get("creationTimestamp")) or now
    if not is_finished(last):
        return RECHECK if now < began + STUCK else 0.0
    if gone:
        wait = SPACING
    elif (meta.get("annotations") or {}).get(REPEAT_ANNOTATION) == "true":
        wait = AGAIN
    else:
        wait = PERIOD
    if find_condition(last, "Failed").get("status") == "True":
        wait = min(wait, AFTER_FAILURE) if not gone else AFTER_FAILURE
    return (began + wait - now).total_seconds()
