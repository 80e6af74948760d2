"""The Service `<endpoint>`: a stable address whose selector matches the active revision.

One change of its selector switches the traffic, atomically for every kube-proxy. The Service's
label holds the number of the active revision, so that a restarted operator finds it there.
"""

from typing import Any

from finetune_operator.decision import ENDPOINT_LABEL, REVISION_LABEL, Manifest
from finetune_operator.resources.deployment import APP_LABEL
from finetune_operator.resources.metadata import add_spec_hash, build_labels, build_owner_reference
from finetune_operator.resources.vllm import PORT


def build_endpoint_service(endpoint: Manifest, number: int, app: str) -> Manifest:
    """The Service as the operator creates it; `app` is the label of the revision's pods."""
    name, namespace = endpoint["metadata"]["name"], endpoint["metadata"]["namespace"]
    return add_spec_hash(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": build_labels({ENDPOINT_LABEL: name, REVISION_LABEL: str(number)}),
                "ownerReferences": [build_owner_reference(endpoint)],
            },
            "spec": {
                "type": "ClusterIP",
                "selector": {APP_LABEL: app},
                "ports": [{"name": "http", "port": 80, "targetPort": PORT, "protocol": "TCP"}],
            },
        }
    )


def build_selector_patch(namespace: str, name: str, number: int, app: str) -> dict[str, Any]:
    """The part of the Service that switches the traffic to another revision."""
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


def build_url(namespace: str, name: str) -> str:
    """Base URL of the OpenAI API, without the cluster's domain, which the operator cannot know."""
    return f"http://{name}.{namespace}.svc/v1"
