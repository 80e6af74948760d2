"""KServe InferenceService of one revision: immutable like the Deployment, but for its replicas.

Standard mode and no autoscaler: KServe would otherwise scale GPUs by CPU use. The name is the
revision's, so that KServe never replaces a model in place; the pointer Service moves the traffic.
"""

from finetune_operator.decision import Manifest
from finetune_operator.resources import vllm
from finetune_operator.resources.metadata import hashed, pod_security_context
from finetune_operator.resources.servingruntime import (
    MODEL_FORMAT,
    go_template_literal,
    serving_runtime,
)
from finetune_operator.resources.vllm import ServedRevision


def inference_service(served: ServedRevision) -> Manifest:
    """The InferenceService `<endpoint>-r<N>`.

    storageUri is the singular field: the plural one loses the path inside a claim.
    """
    profile = served.profile.spec
    return hashed(
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": served.metadata(
                {
                    "serving.kserve.io/deploymentMode": "Standard",
                    "serving.kserve.io/autoscalerClass": "none",
                }
            ),
            "spec": {
                "predictor": {
                    "minReplicas": served.replicas,
                    "maxReplicas": served.replicas,
                    "labels": served.labels(),
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "securityContext": pod_security_context(),
                    # As PID 1 a vLLM that still starts would not be ended by SIGTERM.
                    "shareProcessNamespace": True,
                    "terminationGracePeriodSeconds": 60,
                    **vllm.scheduling(profile, served.settings),
                    "deploymentStrategy": {
                        "type": "RollingUpdate",
                        "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
                    },
                    "model": {
                        "modelFormat": {"name": MODEL_FORMAT},
                        "runtime": serving_runtime(served)["metadata"]["name"],
                        "storageUri": f"pvc://{served.artifact.claim}/{served.artifact.path}",
                        "args": [
                            go_template_literal(each) for each in vllm.revision_arguments(served)
                        ],
                        "resources": vllm.resources(profile, served.gpus),
                    },
                }
            },
        }
    )


def predictor_name(name: str) -> str:
    """Name of the Deployment that KServe makes for an InferenceService."""
    return f"{name}-predictor"


def predictor_app(name: str) -> str:
    """Label `app` of the pods that KServe makes for an InferenceService."""
    return f"isvc.{predictor_name(name)}"


def scaled(namespace: str, name: str, replicas: int) -> Manifest:
    """What to apply to an existing InferenceService to change its size, and nothing else."""
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"predictor": {"minReplicas": replicas, "maxReplicas": replicas}},
    }
