"""Which options of pods the models admit."""

from __future__ import annotations

import pytest
from finetune_api.acceleratorprofile import AcceleratorProfileSpec, CpuPods
from finetune_api.pod_options import EnvVar, PodMetadata
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
EXTRA_RESOURCES = ["rdma/hca", "vpc.amazonaws.com/efa", "hugepages-2Mi", "hugepages-64Ki"]
OTHER_RESOURCES = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "limits.cpu",
    "hugepages-",
    "hugepages-2",
    "kubernetes.io/x",
    "x.kubernetes.io/gpu",
    "requests.example.com/gpu",
    "a b/c",
    "",
]

METADATA_KEYS = [
    "team",
    "example.com/team",
    "azure.workload.identity/use",
    "sidecar.istio.io/inject",
    "kueue.x-k8s.io/podset-required-topology",
    "k8s.v1.cni.cncf.io/networks",
    "cluster-autoscaler.kubernetes.io/safe-to-evict",
    "my-kubernetes.io/a",
]
RESERVED_KEYS = [
    "app",
    "job-name",
    "controller-uid",
    "pod-template-hash",
    "finetune.dev/job-uid",
    "app.kubernetes.io/managed-by",
    "batch.kubernetes.io/job-completion-index",
    "container.apparmor.security.beta.kubernetes.io/trainer",
    "kubernetes.io/hostname",
    "x.cluster-autoscaler.kubernetes.io/a",
    "serving.kserve.io/inferenceservice",
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


def test_pods_without_devices_have_each_variable_once() -> None:
    twice = [{"name": "NO_PROXY", "value": ".svc"}, {"name": "NO_PROXY", "value": "10.0.0.0/8"}]
    with pytest.raises(ValidationError, match="NO_PROXY is there more than once"):
        CpuPods.model_validate({"env": twice})


def pool(**fields: object) -> AcceleratorProfileSpec:
    return AcceleratorProfileSpec.model_validate({"memoryPerDevice": "80Gi", **fields})


@pytest.mark.parametrize("name", EXTRA_RESOURCES)
def test_a_pool_may_have_the_extra_resource(name: str) -> None:
    assert pool(extraResources={name: "4"}).extra_resources == {name: "4"}


@pytest.mark.parametrize("name", OTHER_RESOURCES)
def test_a_pool_may_not_have_the_extra_resource(name: str) -> None:
    with pytest.raises(ValidationError, match="extraResources"):
        pool(extraResources={name: "4"})


def test_a_pool_has_eight_extra_resources_at_most() -> None:
    assert len(pool(extraResources={f"a/r{n}": "1" for n in range(8)}).extra_resources) == 8
    with pytest.raises(ValidationError, match="at most 8"):
        pool(extraResources={f"a/r{n}": "1" for n in range(9)})


@pytest.mark.parametrize("field", ["labels", "annotations"])
@pytest.mark.parametrize("key", METADATA_KEYS)
def test_a_pod_may_have_the_key(key: str, field: str) -> None:
    assert PodMetadata.model_validate({field: {key: "x"}}).to_wire()[field] == {key: "x"}


@pytest.mark.parametrize("field", ["labels", "annotations"])
@pytest.mark.parametrize("key", [*RESERVED_KEYS, "a b", "", "/a", "a/", "A.b/c/d"])
def test_a_pod_may_not_have_the_key(key: str, field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        PodMetadata.model_validate({field: {key: "x"}})


def test_a_reserved_key_is_refused_with_the_keys_that_are_reserved() -> None:
    with pytest.raises(ValidationError, match=r"must not be app, .* or of finetune\.dev"):
        CpuPods.model_validate({"podMetadata": {"labels": {"app": "x"}}})


def test_values_of_labels_are_short_and_those_of_annotations_any_text() -> None:
    text = '[{"name": "rdma net"}]'
    assert PodMetadata(annotations={"a": text}).annotations == {"a": text}
    with pytest.raises(ValidationError, match="labels"):
        PodMetadata(labels={"a": text})


@pytest.mark.parametrize("name", ["system-node-critical", "system-cluster-critical", "High"])
def test_a_priority_class_is_not_one_of_the_system(name: str) -> None:
    for model in (CpuPods, AcceleratorProfileSpec):
        with pytest.raises(ValidationError, match="priorityClassName"):
            model.model_validate({"memoryPerDevice": "1Gi", "priorityClassName": name})
