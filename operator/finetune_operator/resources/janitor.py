"""The Job that removes from a namespace's workspace what nothing keeps, and what starts it.

Job and ledger have one name per namespace, so that two operators cannot make two of them. The list
of what to keep travels in an annotation of the pod and reaches it as a file: no second object that
could be missing or be of another time. An annotation holds 256 KiB, which is 18,000 jobs; for more
the API server refuses the Job, the operator's log says so, and nothing is removed. The ended Job
stays: it says when the last janitor ran, and its log what that did.
"""

from collections.abc import Iterable
from datetime import datetime

from finetune_operator.decision import Manifest, Settings
from finetune_operator.names import JANITOR, WORKSPACE_JOBS
from finetune_operator.resources.metadata import (
    container_security_context,
    hashed,
    labels,
    pod_security_context,
)

WORKSPACE_ROOT = "/workspace"
KEEP_ANNOTATION = "finetune.dev/keep"
AGAIN_ANNOTATION = "finetune.dev/again"
KEEP_FOLDER = "/etc/finetune"
LEDGER_KEY = "kept"
LIST_SECONDS = 900
"""Time after which a list is too old to go by, and the Job is ended."""
MARGIN_SECONDS = 1800
"""Age of a folder, by the volume's clock, below which the list may not know its job yet."""


def janitor_job(
    namespace: str,
    claim_uid: str,
    keep: Iterable[str],
    gone: frozenset[str] | set[str],
    now: datetime,
    settings: Settings,
) -> Manifest:
    """Job that removes everything but `keep`, and jobs of `gone` however young their folders are;
    where there are such, another one is to follow it.

    It carries no job's labels, which would make its pod look like one that still writes.
    """
    identity = labels({"app.kubernetes.io/component": "janitor"})
    template = {
        "metadata": {"labels": identity, "annotations": {KEEP_ANNOTATION: keep_text(keep, gone)}},
        "spec": _pod_spec(_arguments(claim_uid, now, settings), settings),
    }
    return hashed(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": JANITOR,
                "namespace": namespace,
                "labels": identity,
                "annotations": {AGAIN_ANNOTATION: str(bool(gone)).lower()},
            },
            "spec": {
                "backoffLimit": 0,
                "activeDeadlineSeconds": LIST_SECONDS,
                "template": template,
            },
        }
    )


def keep_text(keep: Iterable[str], gone: Iterable[str] = ()) -> str:
    """One entry in a line, after their number: a list that was cut must not look like a list. Jobs
    that are gone for certain stand at the end, behind a minus."""
    jobs = (f"-{entry}" for entry in gone if entry.startswith(f"{WORKSPACE_JOBS}/"))
    entries = [*sorted(keep), *sorted(jobs)]
    return "\n".join([str(len(entries)), *entries])


def kept_by(job: Manifest) -> frozenset[str]:
    """The list that a janitor goes by."""
    annotations = job["spec"]["template"]["metadata"].get("annotations") or {}
    return frozenset(annotations.get(KEEP_ANNOTATION, "").split("\n")[1:])


def ledger(namespace: str, kept: Iterable[str]) -> Manifest:
    """ConfigMap with what was kept since the last janitor: what goes of it calls for the next."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": JANITOR,
            "namespace": namespace,
            "labels": labels({"app.kubernetes.io/component": "janitor"}),
        },
        "data": {LEDGER_KEY: "\n".join(sorted(kept))},
    }


def _arguments(claim_uid: str, now: datetime, settings: Settings) -> list[str]:
    return [
        f"--claim={claim_uid}",
        f"--keep={KEEP_FOLDER}/keep",
        f"--listed-at={int(now.timestamp())}",
        f"--list-seconds={LIST_SECONDS}",
        f"--margin-seconds={MARGIN_SECONDS}",
        f"--model-retention-days={settings.model_retention_days}",
    ]


def _pod_spec(arguments: list[str], settings: Settings) -> Manifest:
    container = {
        "name": "janitor",
        "image": settings.trainer_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["python", "-m", "finetune_trainer.janitor"],
        "args": arguments,
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
        "securityContext": container_security_context(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "workspace", "mountPath": WORKSPACE_ROOT},
            {"name": "keep", "mountPath": KEEP_FOLDER, "readOnly": True},
        ],
    }
    annotation = {"fieldPath": f"metadata.annotations['{KEEP_ANNOTATION}']"}
    spec: Manifest = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security_context(),
        "containers": [container],
        "volumes": [
            {
                "name": "workspace",
                "persistentVolumeClaim": {"claimName": settings.workspace_claim},
            },
            {"name": "keep", "downwardAPI": {"items": [{"path": "keep", "fieldRef": annotation}]}},
        ],
    }
    if settings.trainer_service_account:
        spec["serviceAccountName"] = settings.trainer_service_account
    if settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    return spec
