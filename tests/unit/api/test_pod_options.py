"""Which options of pods the models admit."""

from __future__ import annotations

import pytest
from finetune_api.acceleratorprofile import CpuPods
from finetune_api.pod_options import EnvVar
from pydantic import ValidationError

ENV_NAMES = [
    "NCCL_IB_HCA",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "NVIDIA_VISIBLE_DEVICES",
    "ONEDNN_VERBOSE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "AWS_CA_BUNDLE",
    "HF_ENDPOINT",
]
OTHER_ENV_NAMES = [
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "PATH",
    "HOME",
    "HF_TOKEN",
    "HF_HUB_OFFLINE",
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "FINETUNE_SECRET_MODEL_TOKEN",
    "FINETUNE_RUN_CONFIG",
    "ALL_PROXY",
    "SSL_CERT_DIR",
    "CUDA",
    "XNCCL_DEBUG",
    "HF_ENDPOINT_2",
]


@pytest.mark.parametrize("name", ENV_NAMES)
def test_a_pool_may_set_the_variable(name: str) -> None:
    assert EnvVar(name=name, value="x").name == name


@pytest.mark.parametrize("name", OTHER_ENV_NAMES)
def test_a_pool_may_not_set_the_variable(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        EnvVar(name=name, value="x")


def test_pods_without_devices_take_the_same_variables() -> None:
    pods = CpuPods.model_validate({"env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]})
    assert [each.name for each in pods.env] == ["HTTPS_PROXY"]
    with pytest.raises(ValidationError, match="LD_PRELOAD"):
        CpuPods.model_validate({"env": [{"name": "LD_PRELOAD", "value": "/x.so"}]})
