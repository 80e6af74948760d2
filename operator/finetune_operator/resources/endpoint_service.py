"""The Service `<endpoint>`: a stable address whose selector points at the active revision.

Moving the traffic is one change of one selector, atomic for every kube-proxy that sees it. The
label of the Service tells which revision it points at, so that a restarted operator knows.
"""

from typing import Any

from finetune_operator.decision import ENDPOINT_LABEL, REVISION_LABEL, Manifest
from finetune_operator.resources.deployment import APP_LABEL
from finetune_operator.resources.metadata import hashed, labels, owner_reference
from finetune_operator.resources.vllm import PORT


def service_pointer(endpoint: Manifest, number: int, app: str) -> Manifest:
    """The Service as it is first made; `app` is the label of the revision's pods."""
    name, namespace = endpoint["metadata"]["name"], endpoint["metadata"]["namespace"]
    return hashed(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": labels({ENDPOINT_LABEL: name, REVISION_LABEL: str(number)}),
                "ownerReferences": [owner_reference(endpoint)],
            },
            "spec": {
                "type": "ClusterIP",
                "selector": {APP_LABEL: app},
                "ports": [{"name": "http", "port": 80, "targetPort": PORT, "protocol": "TCP"}],
            },
        }
    )


def pointed(namespace: str, name: str, number: int, app: str) -> dict[str, Any]:
    """What to apply to the existing Service to move the traffic, and nothing else."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {REVISION_LABEL: str(number)},
        },
        "spec": {"selector": {APP_LABEL: app}},
    }


def url(namespace: str, name: str) -> str:
    """Base URL of the OpenAI API; without the cluster's domain, which we cannot know."""
    return f"http://{name}.{namespace}.svc/v1"
