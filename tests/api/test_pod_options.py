"""A real API server accepts stage pods with every option of a pool and of a job."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from finetune_api.acceleratorprofile import AcceleratorProfileSpec
from finetune_api.pod_options import PodMetadata
from finetune_operator.decision import Settings
from finetune_operator.resources.job import build_stage_job
from finetune_operator.resources.metadata import AttemptMetadata
from finetune_operator.resources.pod import Mount, StagePods
from finetune_operator.resources.resource_requirements import build_training_resources

from tests.api.client import Api, ApiError, Manifest
from tests.api.test_cel import job

SETTINGS = Settings(trainer_image="trainer:v1", serving_image="vllm:v1")
POOL = AcceleratorProfileSpec.model_validate(
    {
        "memoryPerDevice": "80Gi",
        "resourceName": "nvidia.com/gpu",
        "extraResources": {"vpc.amazonaws.com/efa": "32", "hugepages-2Mi": "5Gi"},
        "runtimeClassName": "fast",
        "priorityClassName": "batch",
        "podMetadata": {
            "labels": {"cost-centre": "4711"},
            "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
        },
    }
)
PODS = StagePods(
    resources=build_training_resources(POOL, 8),
    shared_memory="1Gi",
    mounts=[Mount("/workspace/job", "jobs/1")],
    nodes=2,
    has_rendezvous=True,
    profile=POOL,
    service_account_name="s3-reader",
    priority_class_name="urgent",
    metadata=PodMetadata(labels={"cost-centre": "mine", "owner": "ada"}),
)


@pytest.fixture(scope="module", autouse=True)
def _classes(api: Api) -> Iterator[None]:
    """The classes that the pods name, without which the API server refuses them."""
    runtime = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "handler": "fast"}
    priority = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": 1000}
    paths = {
        "/apis/node.k8s.io/v1/runtimeclasses": {**runtime, "metadata": {"name": "fast"}},
        "/apis/scheduling.k8s.io/v1/priorityclasses": {**priority, "metadata": {"name": "urgent"}},
    }
    for path, manifest in paths.items():
        api.request("POST", path, manifest)
    yield
    for path, manifest in paths.items():
        api.request("DELETE", f"{path}/{manifest['metadata']['name']}")


def start(api: Api, namespace: str, pods: StagePods) -> Manifest:
    """The first pod of an attempt, as the Job controller would create it."""
    attempt = AttemptMetadata(api.create(job(namespace)), "train", 1)
    made = api.create(build_stage_job(attempt, pods, SETTINGS))
    template = made["spec"]["template"]
    metadata = {"name": "wish-train-1-0", "namespace": namespace, **template["metadata"]}
    return api.create(
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    )


def enforce_restricted(api: Api, namespace: str) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    api.patch("Namespace", "", namespace, {"metadata": {"labels": labels}})


def test_a_restricted_namespace_admits_every_option_but_the_host_network(
    api: Api, namespace: str
) -> None:
    enforce_restricted(api, namespace)
    pod = start(api, namespace, PODS)
    assert pod["spec"]["priority"] == 1000
    assert pod["spec"]["runtimeClassName"] == "fast"
    assert pod["spec"]["serviceAccountName"] == "s3-reader"
    assert pod["metadata"]["labels"].items() >= {"cost-centre": "4711", "owner": "ada"}.items()
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["limits"]["hugepages-2Mi"] == "5Gi"
    assert "hostPort" not in container["ports"][0]


def test_a_restricted_namespace_refuses_the_host_network(api: Api, namespace: str) -> None:
    enforce_restricted(api, namespace)
    with pytest.raises(ApiError, match="host namespaces"):
        start(api, namespace, replace(PODS, has_host_network=True))


def test_pods_on_the_host_network_reserve_their_ports(api: Api, namespace: str) -> None:
    pod = start(api, namespace, replace(PODS, has_host_network=True))
    assert pod["spec"]["dnsPolicy"] == "ClusterFirstWithHostNet"
    ports = pod["spec"]["containers"][0]["ports"]
    assert [(each["name"], each["hostPort"]) for each in ports] == [
        ("telemetry", 9400),
        ("rendezvous", 29500),
    ]
    assert pod["spec"]["containers"][0]["env"][-1]["valueFrom"]["fieldRef"] == {
        "apiVersion": "v1",
        "fieldPath": "spec.nodeName",
    }
