"""The pod that serves one revision with vLLM, the same for a Deployment and for KServe.

Command line, probes, mounts and sizes are defined here once, so that both run the same container.
KServe itself mounts the model.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from finetune_api.acceleratorprofile import AcceleratorProfile, AcceleratorProfileSpec

from finetune_operator.decision import (
    ENDPOINT_LABEL,
    REVISION_LABEL,
    Manifest,
    Settings,
)
from finetune_operator.resources.environment import build_pool_environment
from finetune_operator.resources.metadata import build_labels, build_owner_reference
from finetune_operator.resources.resource_requirements import build_device_resources
from finetune_operator.resources.security_context import CONTAINER_SECURITY_CONTEXT

PORT = 8080
MODEL_PATH = "/mnt/models"
"""Where the pod mounts the model; KServe mounts it here too."""
COMMAND = ["python3", "-m", "vllm.entrypoints.openai.api_server"]
"""Release images of vLLM have no `python`."""
START_SECONDS = 1800
"""How long vLLM may take from the start of its process to the first response."""
KEY_ANNOTATION = "finetune.dev/revision-key"
ARTIFACT_ANNOTATION = "finetune.dev/artifact"
DIGEST_ANNOTATION = "finetune.dev/digest"


@dataclass(frozen=True)
class Artifact:
    """A folder in a claim."""

    claim: str
    path: str
    uri: str
    digest: str


@dataclass(frozen=True)
class ServedRevision:
    """Everything that determines the pods of one revision."""

    endpoint: Manifest
    """The ModelEndpoint as the API server returned it: name, namespace and owner."""
    number: int
    key: str
    artifact: Artifact
    profile: AcceleratorProfile
    gpus: int
    replicas: int
    settings: Settings

    @property
    def endpoint_name(self) -> str:
        """Name of the endpoint, which is also the model's name in the OpenAI API."""
        return str(self.endpoint["metadata"]["name"])

    @property
    def name(self) -> str:
        """Name of the child object."""
        return revision_name(self.endpoint_name, self.number)

    def build_labels(self) -> dict[str, str]:
        """Labels of the child and of its pods."""
        return build_labels({ENDPOINT_LABEL: self.endpoint_name, REVISION_LABEL: str(self.number)})

    def build_metadata(self, annotations: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The metadata of the child: owned by the endpoint, annotated with what it serves."""
        return {
            "name": self.name,
            "namespace": self.endpoint["metadata"]["namespace"],
            "labels": self.build_labels(),
            "annotations": {
                KEY_ANNOTATION: self.key,
                ARTIFACT_ANNOTATION: self.artifact.uri,
                DIGEST_ANNOTATION: self.artifact.digest,
                **(annotations or {}),
            },
            "ownerReferences": [build_owner_reference(self.endpoint)],
        }


def revision_name(endpoint: str, number: int) -> str:
    """Name of the child that runs a revision."""
    return f"{endpoint}-r{number}"


def build_container(
    name: str, profile: AcceleratorProfileSpec, settings: Settings
) -> dict[str, Any]:
    """The vLLM container without the arguments and the resources of a revision.

    vLLM writes its errors only to its log; with FallbackToLogsOnError the kubelet copies the end of
    the log into the pod's status, where the operator can read it.
    """
    return {
        "name": name,
        "image": profile.serving.image or settings.serving_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": list(COMMAND),
        "args": build_common_arguments(profile, settings),
        "env": build_environment(profile),
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "startupProbe": _build_probe(period=2, failures=START_SECONDS // 2, timeout=5),
        "readinessProbe": _build_probe(period=2, failures=3, timeout=5),
        "livenessProbe": _build_probe(period=10, failures=12, timeout=10),
        "securityContext": deepcopy(CONTAINER_SECURITY_CONTEXT),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }


def build_common_arguments(profile: AcceleratorProfileSpec, settings: Settings) -> list[str]:
    """Arguments that do not depend on the model.

    By itself vLLM listens on IPv4 only; on :: it accepts both families, but does not start on a
    node whose kernel has no IPv6.
    Without a length vLLM takes the model's own context, and does not start when the key-value cache
    of one such sequence does not fit: 131,072 tokens of Llama 3.1 8B take 16 GiB in addition to
    15 GiB of weights.
    """
    length = str(profile.serving.max_model_len or "auto")
    host = ("--host", "::") if settings.has_ipv6_pods else ()
    return [
        *("--model", MODEL_PATH),
        *host,
        *("--port", str(PORT)),
        *("--dtype", profile.serving.dtype),
        *("--max-model-len", length),
    ]


def build_revision_arguments(served: ServedRevision) -> list[str]:
    """Arguments of one revision; the profile's own come last, so that they win."""
    arguments = ["--served-model-name", served.endpoint_name]
    if served.profile.spec.resource_name and served.gpus > 1:
        arguments += ["--tensor-parallel-size", str(served.gpus)]
    return arguments + list(served.profile.spec.serving.args)


def build_environment(profile: AcceleratorProfileSpec) -> list[Manifest]:
    """Environment: vLLM sends nothing out of the cluster and writes only below /tmp.

    USER is set because PyTorch looks up the user's name, and the image has none for its user id.
    """
    fixed = {
        "HOME": "/tmp",
        "USER": "finetune",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    return build_pool_environment(fixed, profile)


def build_resources(profile: AcceleratorProfileSpec, gpus: int) -> dict[str, Any]:
    """Requests and limits of a replica."""
    return build_device_resources(profile, gpus if profile.resource_name else 1)


def build_volumes(profile: AcceleratorProfileSpec) -> list[dict[str, Any]]:
    """Scratch space and shared memory; vLLM's processes communicate through /dev/shm."""
    shared = {"medium": "Memory", "sizeLimit": profile.shared_memory}
    return [{"name": "tmp", "emptyDir": {}}, {"name": "shm", "emptyDir": shared}]


def _build_probe(period: int, failures: int, timeout: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": "/health", "port": PORT},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": timeout,
    }
