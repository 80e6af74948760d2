"""Options of pods that a profile, the pods without devices and a job have in common.

Every name that a pod can get from them is on an allow-list or checked against what the operator
sets itself: a free pod template would lend the author of a job the operator's rights.
"""

from typing import Annotated

from pydantic import Field, StringConstraints

from finetune_api.base import (
    CheckedKeys,
    LabelKey,
    LabelValue,
    LongText,
    ObjectName,
    PatternMessage,
    RefusedPattern,
    SpecModel,
)

ENV_PATTERN = (
    r"^((NCCL|GLOO|UCX|FI|OMP|KMP|VLLM|TORCH|CUDA|ONEDNN|NVIDIA)_[A-Z0-9_]+"
    r"|(HTTP|HTTPS|NO)_PROXY|(http|https|no)_proxy"
    r"|SSL_CERT_FILE|(REQUESTS|CURL|AWS)_CA_BUNDLE|HF_ENDPOINT)$"
)
EnvName = Annotated[
    str,
    StringConstraints(pattern=ENV_PATTERN, max_length=64),
    PatternMessage(
        "must begin with NCCL_, GLOO_, UCX_, FI_, OMP_, KMP_, VLLM_, TORCH_, CUDA_, ONEDNN_ or "
        "NVIDIA_, or be HTTP_PROXY, HTTPS_PROXY, NO_PROXY (also in lower case), SSL_CERT_FILE, "
        "REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE, AWS_CA_BUNDLE or HF_ENDPOINT"
    ),
]

SYSTEM_CLASS_PATTERN = r"^system-"
PriorityClassName = Annotated[
    ObjectName,
    RefusedPattern(
        SYSTEM_CLASS_PATTERN, "must not begin with system-, which is for components of the cluster"
    ),
]
RESERVED_KEY_PATTERN = (
    r"^(app|job-name|controller-uid|pod-template-hash)$"
    r"|^([^/]+\.)?(kubernetes\.io|finetune\.dev)/|^serving\.kserve\.io/"
)
AUTOSCALER_PREFIX = "cluster-autoscaler.kubernetes.io/"
MetadataKey = Annotated[
    LabelKey,
    RefusedPattern(
        RESERVED_KEY_PATTERN,
        "must not be app, job-name, controller-uid or pod-template-hash, or of finetune.dev, "
        "kubernetes.io (except cluster-autoscaler.kubernetes.io) or serving.kserve.io, which the "
        "operator and Kubernetes set",
        AUTOSCALER_PREFIX,
    ),
]


class PodMetadata(SpecModel):
    """Labels and annotations of pods, in addition to those that the operator sets."""

    labels: Annotated[dict[MetadataKey, LabelValue], CheckedKeys()] = Field(
        default_factory=dict, max_length=16
    )
    """Labels, for example of a team or a cost centre."""
    annotations: Annotated[dict[MetadataKey, LongText], CheckedKeys()] = Field(
        default_factory=dict, max_length=16
    )
    """Annotations, which webhooks and network plugins read."""


class EnvVar(SpecModel):
    """An environment variable for the network or a runtime library."""

    name: EnvName
    """Name of the variable: with the prefix of a library (NCCL_, GLOO_, UCX_, FI_, OMP_, KMP_,
    VLLM_, TORCH_, CUDA_, ONEDNN_, NVIDIA_), or that of a proxy, of a CA bundle or of the Hugging
    Face endpoint."""
    value: Annotated[str, StringConstraints(max_length=1024)]
    """Value of the variable."""
