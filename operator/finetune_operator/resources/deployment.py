"""Deployment of one revision of a ModelEndpoint: vLLM on the exported model, without KServe.

It is made once and never rendered again: an upgrade of the operator leaves running revisions
alone. Only the number of replicas changes in place.
"""

from typing import Any

from finetune_operator.decision import ENDPOINT_LABEL, REVISION_LABEL, Manifest
from finetune_operator.resources import vllm
from finetune_operator.resources.metadata import hashed, pod_security_context
from finetune_operator.resources.vllm import ServedRevision

APP_LABEL = "app"
"""The one label that the pointer Service selects by; KServe sets the same one on its pods."""


def deployment(served: ServedRevision) -> Manifest:
    """The Deployment `<endpoint>-r<N>`."""
    own = served.labels()
    return hashed(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": served.metadata(),
            "spec": {
                "replicas": served.replicas,
                "revisionHistoryLimit": 1,
                "progressDeadlineSeconds": vllm.START_SECONDS,
                "strategy": {
                    "type": "RollingUpdate",
                    "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
                },
                "selector": {
                    "matchLabels": {label: own[label] for label in (ENDPOINT_LABEL, REVISION_LABEL)}
                },
                "template": {
                    "metadata": {"labels": {APP_LABEL: served.name, **own}},
                    "spec": pod_spec(served),
                },
            },
        }
    )


def pod_spec(served: ServedRevision) -> dict[str, Any]:
    """The pod: restricted, no API token, the model's folder mounted read-only.

    Service links are off: a Service called `vllm` would set VLLM_PORT, which vLLM reads.
    """
    profile = served.profile.spec
    container = vllm.container("vllm", profile, served.settings)
    container["args"] = container["args"] + vllm.revision_arguments(served)
    container["resources"] = vllm.resources(profile, served.gpus)
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
        "securityContext": pod_security_context(),
        # As PID 1 a vLLM that still starts would not be ended by SIGTERM.
        "shareProcessNamespace": True,
        "terminationGracePeriodSeconds": 60,
        **vllm.scheduling(profile, served.settings),
        "containers": [container],
        "volumes": [{"name": "model", "persistentVolumeClaim": claim}, *vllm.volumes(profile)],
    }


def scaled(namespace: str, name: str, replicas: int) -> Manifest:
    """What to apply to an existing Deployment to change its size, and nothing else."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": replicas},
    }
