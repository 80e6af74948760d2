"""Options of pods that a profile, the pods without devices and a job have in common.

Every name that a pod can get from them is on an allow-list or checked against what the operator
sets itself: a free pod template would lend the author of a job the operator's rights.
"""

from typing import Annotated

from pydantic import StringConstraints

from finetune_api.base import PatternMessage, SpecModel

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


class EnvVar(SpecModel):
    """An environment variable for the network or a runtime library."""

    name: EnvName
    """Name of the variable: with the prefix of a library (NCCL_, GLOO_, UCX_, FI_, OMP_, KMP_,
    VLLM_, TORCH_, CUDA_, ONEDNN_, NVIDIA_), or that of a proxy, of a CA bundle or of the Hugging
    Face endpoint."""
    value: Annotated[str, StringConstraints(max_length=1024)]
    """Value of the variable."""
