"""The workspace claim of a namespace, for when the platform team has not made one."""

from finetune_operator.decision import Manifest, Settings
from finetune_operator.resources.metadata import hashed, labels


def workspace_claim(namespace: str, settings: Settings) -> Manifest:
    """ReadWriteMany claim without an owner: it outlives every job."""
    spec: Manifest = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": settings.workspace_size}},
    }
    if settings.workspace_storage_class is not None:
        spec["storageClassName"] = settings.workspace_storage_class
    return hashed(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": settings.workspace_claim,
                "namespace": namespace,
                "labels": labels(),
            },
            "spec": spec,
        }
    )
