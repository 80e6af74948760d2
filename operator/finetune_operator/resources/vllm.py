"""The pod that serves one revision with vLLM, the same for a Deployment and for KServe.

The command line, probes, mounts and sizes live here once, so that both roads run the same
container. What KServe itself adds (mounting the model) is left to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.acceleratorprofile import AcceleratorProfile, AcceleratorProfileSpec

from finetune_operator.decision import (
    ENDPOINT_LABEL,
    REVISION_LABEL,
    Manifest,
    Settings,
)
from finetune_operator.resources.metadata import container_security_context, labels, owner_reference
from finetune_operator.resources.resource_requirements import device_resources

PORT = 8080
MODEL_PATH = "/mnt/models"
"""Where the model lies in the pod; KServe mounts it here too."""
COMMAND = ["python", "-m", "vllm.entrypoints.openai.api_server"]
START_SECONDS = 1800
"""How long vLLM may take from the start of its process to the first answer."""
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
    """All that the pods of one revision depend on."""

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

    def labels(self) -> dict[str, str]:
        """Labels of the child and of its pods."""
        return labels({ENDPOINT_LABEL: self.endpoint_name, REVISION_LABEL: str(self.number)})

    def metadata(self, annotations: Mapping[str, str] | None = None) -> dict[str, Any]:
        """metadata of the child object: owned by the endpoint, and telling what it serves."""
        return {
            "name": self.name,
            "namespace": self.endpoint["metadata"]["namespace"],
            "labels": self.labels(),
            "annotations": {
                KEY_ANNOTATION: self.key,
                ARTIFACT_ANNOTATION: self.artifact.uri,
                DIGEST_ANNOTATION: self.artifact.digest,
                **(annotations or {}),
            },
            "ownerReferences": [owner_reference(self.endpoint)],
        }


def revision_name(endpoint: str, number: int) -> str:
    """Name of the child that runs a revision."""
    return f"{endpoint}-r{number}"


def image(profile: AcceleratorProfileSpec, settings: Settings) -> str:
    """The profile's image, else the installation's pinned one."""
    return profile.serving.image or settings.serving_image


def common_arguments(profile: AcceleratorProfileSpec) -> list[str]:
    """Arguments that do not depend on the model.

    With no length at all vLLM takes the model's own and does not start when the cache of one such
    sequence does not fit: 131,072 tokens of Llama 3.1 8B take 16 GiB beside 15 GiB of weights.
    """
    length = str(profile.serving.max_model_len or "auto")
    return [
        *("--model", MODEL_PATH),
        *("--port", str(PORT)),
        *("--dtype", profile.serving.dtype),
        *("--max-model-len", length),
    ]


def revision_arguments(served: ServedRevision) -> list[str]:
    """Arguments of one revision; the pool's own come last, so that they win."""
    out = ["--served-model-name", served.endpoint_name]
    if served.profile.spec.resource_name and served.gpus > 1:
        out += ["--tensor-parallel-size", str(served.gpus)]
    return out + list(served.profile.spec.serving.args)


def environment(profile: AcceleratorProfileSpec) -> list[dict[str, str]]:
    """Environment: nothing leaves the cluster, and everything is written below /tmp.

    USER is set because PyTorch asks for the name of a user that no image knows.
    """
    fixed = {
        "HOME": "/tmp",
        "USER": "finetune",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    pool = {each.name: each.value for each in profile.env}
    return [{"name": name, "value": value} for name, value in {**fixed, **pool}.items()]


def resources(profile: AcceleratorProfileSpec, gpus: int) -> dict[str, Any]:
    """Requests and limits of a replica."""
    return device_resources(profile, gpus if profile.resource_name else 1)


def volumes(profile: AcceleratorProfileSpec) -> list[dict[str, Any]]:
    """Scratch space and shared memory; vLLM's processes talk through /dev/shm."""
    shared = {"medium": "Memory", "sizeLimit": profile.shared_memory}
    return [{"name": "tmp", "emptyDir": {}}, {"name": "shm", "emptyDir": shared}]


def mounts() -> list[dict[str, Any]]:
    """Where the volumes go."""
    return [{"name": "tmp", "mountPath": "/tmp"}, {"name": "shm", "mountPath": "/dev/shm"}]


def scheduling(profile: AcceleratorProfileSpec, settings: Settings) -> dict[str, Any]:
    """Pod fields that say where it runs, under the names that Pod and KServe share."""
    out: dict[str, Any] = {}
    if profile.node_selector:
        out["nodeSelector"] = dict(profile.node_selector)
    if profile.tolerations:
        out["tolerations"] = [each.to_wire() for each in profile.tolerations]
    if settings.image_pull_secrets:
        out["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    return out


def container(name: str, profile: AcceleratorProfileSpec, settings: Settings) -> dict[str, Any]:
    """The vLLM container without what belongs to a revision (its arguments and its size).

    Errors of vLLM stand in its log only; FallbackToLogsOnError brings the end of it into the
    pod's status, where the operator can read it.
    """
    return {
        "name": name,
        "image": image(profile, settings),
        "imagePullPolicy": settings.image_pull_policy,
        "command": COMMAND,
        "args": common_arguments(profile),
        "env": environment(profile),
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "startupProbe": _probe(period=2, failures=START_SECONDS // 2, timeout=5),
        "readinessProbe": _probe(period=2, failures=3, timeout=5),
        "livenessProbe": _probe(period=10, failures=12, timeout=10),
        "securityContext": container_security_context(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts(),
    }


def _probe(period: int, failures: int, timeout: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": "/health", "port": PORT},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": timeout,
    }
