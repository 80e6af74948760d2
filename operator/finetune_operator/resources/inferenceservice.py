"""KServe InferenceService of one revision: like the Deployment, only its replicas ever change.

Standard mode and no autoscaler, because KServe would otherwise scale GPUs by CPU use. It has the
revision's name, so that KServe never replaces a model in place; the endpoint's Service switches the
traffic.
"""

from finetune_operator.decision import Manifest
from finetune_operator.resources import vllm
from finetune_operator.resources.metadata import add_spec_hash, build_pod_metadata
from finetune_operator.resources.scheduling import build_pull_secrets, build_scheduling
from finetune_operator.resources.security_context import build_pod_security_context
from finetune_operator.resources.servingruntime import (
    MODEL_FORMAT,
    build_serving_runtime,
    escape_go_template,
)
from finetune_operator.resources.vllm import ServedRevision


def build_inference_service(served: ServedRevision) -> Manifest:
    """The InferenceService `<endpoint>-r<N>`.

    It sets storageUri, because the plural field storageUris loses the path inside a claim.
    """
    profile = served.profile.spec
    return add_spec_hash(
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": served.build_metadata(
                {
                    "serving.kserve.io/deploymentMode": "Standard",
                    "serving.kserve.io/autoscalerClass": "none",
                }
            ),
            "spec": {
                "predictor": {
                    "minReplicas": served.replicas,
                    "maxReplicas": served.replicas,
                    **build_pod_metadata(served.build_labels(), [profile.pod_metadata]),
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "securityContext": build_pod_security_context(served.settings.user_id),
                    # As PID 1 vLLM would ignore SIGTERM while it starts.
                    "shareProcessNamespace": True,
                    "terminationGracePeriodSeconds": 60,
                    **build_scheduling(profile, served.settings),
                    **build_pull_secrets(served.settings),
                    "deploymentStrategy": {
                        "type": "RollingUpdate",
                        "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
                    },
                    "model": {
                        "modelFormat": {"name": MODEL_FORMAT},
                        "runtime": build_serving_runtime(served)["metadata"]["name"],
                        "storageUri": f"pvc://{served.artifact.claim}/{served.artifact.path}",
                        "args": [
                            escape_go_template(each)
                            for each in vllm.build_revision_arguments(served)
                        ],
                        "resources": vllm.build_resources(profile, served.gpus),
                    },
                }
            },
        }
    )


def predictor_name(name: str) -> str:
    """Name of the Deployment that KServe creates for an InferenceService."""
    return f"{name}-predictor"


def predictor_app(name: str) -> str:
    """Label `app` of the pods that KServe creates for an InferenceService."""
    return f"isvc.{predictor_name(name)}"


def build_replicas_patch(namespace: str, name: str, replicas: int) -> Manifest:
    """The part of an InferenceService that changes its size."""
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"predictor": {"minReplicas": replicas, "maxReplicas": replicas}},
    }
