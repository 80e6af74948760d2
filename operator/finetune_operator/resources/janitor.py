"""The Job that removes the files of a deleted FineTuneJob from the workspace."""

from collections.abc import Sequence

from finetune_operator.decision import JOB_NAME_LABEL, Manifest, Settings
from finetune_operator.names import janitor_name
from finetune_operator.resources.common import (
    container_security_context,
    hashed,
    labels,
    pod_security_context,
)

WORKSPACE_ROOT = "/workspace"
REMOVE_ENV = "FINETUNE_JANITOR_REMOVE"
SECONDS_KEPT = 60


def janitor_job(
    namespace: str, job_name: str, uid: str, folders: Sequence[str], settings: Settings
) -> Manifest:
    """Job that deletes `folders`, which are relative to the workspace's root.

    It has no owner, as that is gone, and goes by itself a minute after its end. The job's uid is
    in its name only: a label would make it look like one of the job's own pods.
    """
    identity = labels({JOB_NAME_LABEL: job_name, "app.kubernetes.io/component": "janitor"})
    return hashed(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": janitor_name(uid),
                "namespace": namespace,
                "labels": identity,
            },
            "spec": {
                "backoffLimit": 3,
                "ttlSecondsAfterFinished": SECONDS_KEPT,
                "template": {
                    "metadata": {"labels": identity},
                    "spec": _pod_spec(folders, settings),
                },
            },
        }
    )


def _pod_spec(folders: Sequence[str], settings: Settings) -> Manifest:
    container = {
        "name": "janitor",
        "image": settings.trainer_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["python", "-m", "finetune_trainer.janitor"],
        "env": [{"name": REMOVE_ENV, "value": " ".join(folders)}],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
        "securityContext": container_security_context(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "workspace", "mountPath": WORKSPACE_ROOT}],
    }
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
            }
        ],
    }
    if settings.trainer_service_account:
        spec["serviceAccountName"] = settings.trainer_service_account
    if settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    return spec
