"""The workspace claim of a namespace, for clusters where the platform team has not made one."""

from finetune_operator.decision import Manifest, Settings
from finetune_operator.resources.metadata import add_spec_hash, build_labels


def build_workspace_pvc(namespace: str, settings: Settings) -> Manifest:
    """ReadWriteMany claim without an owner: it outlives every job."""
    spec: Manifest = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": settings.workspace_size}},
    }
    if settings.workspace_storage_class is not None:
        spec["storageClassName"] = settings.workspace_storage_class
    return add_spec_hash(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": settings.workspace_claim,
                "namespace": namespace,
                "labels": build_labels(),
            },
            "spec": spec,
        }
    )
