"""Deployment of one revision of a ModelEndpoint: vLLM on the exported model, without KServe.

The operator creates it once and never renders it again, so an upgrade of the operator leaves
running revisions alone. Only the number of replicas changes in place.
"""

from typing import Any

from finetune_operator.decision import ENDPOINT_LABEL, REVISION_LABEL, Manifest
from finetune_operator.resources import vllm
from finetune_operator.resources.metadata import add_spec_hash, build_pod_metadata
from finetune_operator.resources.scheduling import build_pull_secrets, build_scheduling
from finetune_operator.resources.security_context import build_pod_security_context
from finetune_operator.resources.vllm import ServedRevision

CONTAINER = "vllm"
APP_LABEL = "app"
"""The label that the endpoint's Service selects by; KServe sets the same one on its pods."""


def build_deployment(served: ServedRevision) -> Manifest:
    """The Deployment `<endpoint>-r<N>`."""
    labels = served.build_labels()
    return add_spec_hash(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": served.build_metadata(),
            "spec": {
                "replicas": served.replicas,
                "revisionHistoryLimit": 1,
                "progressDeadlineSeconds": vllm.START_SECONDS,
                "strategy": {
                    "type": "RollingUpdate",
                    "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
                },
                "selector": {
                    "matchLabels": {key: labels[key] for key in (ENDPOINT_LABEL, REVISION_LABEL)}
                },
                "template": {
                    "metadata": build_pod_metadata(
                        {APP_LABEL: served.name, **labels}, [served.profile.spec.pod_metadata]
                    ),
                    "spec": build_serving_pod_spec(served),
                },
            },
        }
    )


def build_serving_pod_spec(served: ServedRevision) -> dict[str, Any]:
    """The pod: restricted, no API token, the model's folder mounted read-only.

    Service links are off, because a Service named `vllm` would set VLLM_PORT, which vLLM reads.
    """
    profile = served.profile.spec
    container = vllm.build_container(CONTAINER, profile, served.settings)
    container["args"] = container["args"] + vllm.build_revision_arguments(served)
    container["resources"] = vllm.build_resources(profile, served.gpus)
    model = {
        "name": "model",
        "mountPath": vllm.MODEL_PATH,
        "subPath": served.artifact.path,
        "readOnly": True,
    }
    container["volumeMounts"] = [model, *container["volumeMounts"]]
    claim = {"claimName": served.artifact.claim}
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": build_pod_security_context(served.settings.user_id),
        # As PID 1 vLLM would ignore SIGTERM while it starts.
        "shareProcessNamespace": True,
        "terminationGracePeriodSeconds": 60,
        **build_scheduling(profile, served.settings),
        **build_pull_secrets(served.settings),
        "containers": [container],
        "volumes": [
            {"name": "model", "persistentVolumeClaim": claim},
            *vllm.build_volumes(profile),
        ],
    }


def build_replicas_patch(namespace: str, name: str, replicas: int) -> Manifest:
    """The part of a Deployment that changes its size."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": replicas},
    }
