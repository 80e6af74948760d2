"""The janitor Job, which removes unused folders from a namespace's workspace, and its ledger.

Job and ledger have one name per namespace, so that two operators cannot create two of them. The
pod gets the list of folders to keep from an annotation of its own, through the downward API: a
second object could be missing or out of date. An annotation holds 256 KiB, which is 18,000 jobs;
above that the API server rejects the Job, the operator logs it, and the workspace stays as it is.
The finished Job stays, because it records when the last janitor ran, and its log what it removed.
"""

from collections.abc import Iterable
from copy import deepcopy
from datetime import datetime

from finetune_operator.decision import Manifest, Settings
from finetune_operator.names import JANITOR, WORKSPACE_JOBS
from finetune_operator.resources.environment import build_pool_environment
from finetune_operator.resources.metadata import add_spec_hash, build_labels, build_pod_metadata
from finetune_operator.resources.resource_requirements import build_host_resources
from finetune_operator.resources.scheduling import build_pull_secrets, build_scheduling
from finetune_operator.resources.security_context import (
    CONTAINER_SECURITY_CONTEXT,
    build_pod_security_context,
)

WORKSPACE_ROOT = "/workspace"
KEEP_ANNOTATION = "finetune.dev/keep"
REPEAT_ANNOTATION = "finetune.dev/again"
KEEP_FOLDER = "/etc/finetune"
LEDGER_KEY = "kept"
LIST_SECONDS = 900
"""Age at which the list is out of date and Kubernetes ends the Job."""
REQUESTS = {"cpu": "50m", "memory": "64Mi"}
MARGIN_SECONDS = 1800
"""The janitor keeps folders younger than this, by the volume's clock, because the list may be older
than their jobs."""


def build_janitor_job(
    namespace: str,
    claim_uid: str,
    keep: Iterable[str],
    gone: frozenset[str] | set[str],
    now: datetime,
    settings: Settings,
    released: Iterable[str] = (),
    is_repeated: bool = False,
) -> Manifest:
    """Job that removes everything except `keep` and what is retained: the folders of the jobs in
    `gone` at any age, and the artifacts in `released` although they are retained. The time of the
    artifacts in `gone` begins again. If `gone` is not empty or `is_repeated` is true, the
    annotation requests another janitor afterwards.

    It has no labels of a FineTuneJob, with which its pod would look like a stage that still writes.
    """
    labels = build_labels({"app.kubernetes.io/component": "janitor"})
    template = {
        "metadata": build_pod_metadata(
            labels,
            [settings.cpu_pods.pod_metadata],
            {KEEP_ANNOTATION: format_keep_list(keep, gone, released)},
        ),
        "spec": _build_pod_spec(_build_arguments(claim_uid, now, settings), settings),
    }
    return add_spec_hash(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": JANITOR,
                "namespace": namespace,
                "labels": labels,
                "annotations": {REPEAT_ANNOTATION: str(bool(gone) or is_repeated).lower()},
            },
            "spec": {
                "backoffLimit": 0,
                "activeDeadlineSeconds": LIST_SECONDS,
                "template": template,
            },
        }
    )


def format_keep_list(
    keep: Iterable[str], gone: Iterable[str] = (), released: Iterable[str] = ()
) -> str:
    """The number of entries, then one entry per line, so that the janitor detects a truncated list.
    Artifacts that something referred to since the last janitor have a leading plus; jobs that
    certainly no longer exist, and artifacts that are not retained, a leading minus."""
    jobs = {entry for entry in gone if entry.startswith(f"{WORKSPACE_JOBS}/")}
    recent = sorted(f"+{entry}" for entry in set(gone) - jobs)
    entries = [*sorted(keep), *recent, *sorted(f"-{entry}" for entry in (*jobs, *released))]
    return "\n".join([str(len(entries)), *entries])


def parse_keep_list(job: Manifest) -> frozenset[str]:
    """The entries of a janitor's list, as `format_keep_list` wrote them."""
    annotations = job["spec"]["template"]["metadata"].get("annotations") or {}
    return frozenset(annotations.get(KEEP_ANNOTATION, "").split("\n")[1:])


def build_ledger(namespace: str, kept: Iterable[str]) -> Manifest:
    """ConfigMap with the folders in use since the last janitor: once one of them is unused, the
    next janitor is due."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": JANITOR,
            "namespace": namespace,
            "labels": build_labels({"app.kubernetes.io/component": "janitor"}),
        },
        "data": {LEDGER_KEY: "\n".join(sorted(kept))},
    }


def _build_arguments(claim_uid: str, now: datetime, settings: Settings) -> list[str]:
    return [
        f"--claim={claim_uid}",
        f"--keep={KEEP_FOLDER}/keep",
        f"--listed-at={int(now.timestamp())}",
        f"--list-seconds={LIST_SECONDS}",
        f"--margin-seconds={MARGIN_SECONDS}",
        f"--model-retention-days={settings.model_retention_days}",
    ]


def _build_pod_spec(arguments: list[str], settings: Settings) -> Manifest:
    container: Manifest = {
        "name": "janitor",
        "image": settings.trainer_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["python", "-m", "finetune_trainer.janitor"],
        "args": arguments,
        "resources": build_host_resources(REQUESTS, settings.cpu_pods.limits),
        "securityContext": deepcopy(CONTAINER_SECURITY_CONTEXT),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "workspace", "mountPath": WORKSPACE_ROOT},
            {"name": "keep", "mountPath": KEEP_FOLDER, "readOnly": True},
        ],
    }
    if environment := build_pool_environment({}, settings.cpu_pods):
        container["env"] = environment
    annotation = {"fieldPath": f"metadata.annotations['{KEEP_ANNOTATION}']"}
    spec: Manifest = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": build_pod_security_context(settings.user_id),
        "containers": [container],
        "volumes": [
            {
                "name": "workspace",
                "persistentVolumeClaim": {"claimName": settings.workspace_claim},
            },
            {"name": "keep", "downwardAPI": {"items": [{"path": "keep", "fieldRef": annotation}]}},
        ],
    }
    spec.update(build_scheduling(settings.cpu_pods, settings, settings.lost_node_seconds))
    if settings.trainer_service_account:
        spec["serviceAccountName"] = settings.trainer_service_account
    spec.update(build_pull_secrets(settings))
    return spec
