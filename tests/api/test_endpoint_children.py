"""A real API server accepts the children of a ModelEndpoint in a restricted namespace."""

from __future__ import annotations

import pytest
from finetune_api.acceleratorprofile import AcceleratorProfile
from finetune_operator.decision import Settings
from finetune_operator.endpoints.observe import parse_artifact
from finetune_operator.resources import deployment, endpoint_service
from finetune_operator.resources.vllm import Artifact, ServedRevision

from tests.api.client import Api, Manifest

PROFILE = {
    "default": True,
    "nodeSelector": {"pool": "h100"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "resourceName": "nvidia.com/gpu",
    "devicesPerNode": 8,
    "memoryPerDevice": "80Gi",
    "cpuPerDevice": "500m",
    "hostMemoryPerDevice": "1.5Gi",
    "env": [{"name": "NCCL_DEBUG", "value": "WARN"}],
    "serving": {"dtype": "bfloat16", "maxModelLen": 4096, "args": ["--max-num-seqs", "8"]},
}


@pytest.fixture
def served(api: Api, namespace: str) -> ServedRevision:
    """A revision of an endpoint that exists, in a namespace that enforces `restricted`."""
    enforce = {"pod-security.kubernetes.io/enforce": "restricted"}
    api.request(
        "PATCH",
        f"/api/v1/namespaces/{namespace}",
        {"metadata": {"labels": enforce}},
        "application/merge-patch+json",
    )
    source = {"uri": "pvc://finetune-workspace/artifacts/a", "digest": "sha256:" + "a" * 64}
    endpoint: Manifest = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "ModelEndpoint",
        "metadata": {"name": "glossary", "namespace": namespace},
        "spec": {"artifact": source, "gpus": 4},
    }
    artifact = parse_artifact(**source)
    assert isinstance(artifact, Artifact)
    return ServedRevision(
        endpoint=api.create(endpoint),
        number=1,
        key="spec-pod",
        artifact=artifact,
        profile=AcceleratorProfile.model_validate({"name": "h100", "spec": PROFILE}),
        gpus=4,
        replicas=2,
        settings=Settings("trainer:v1", "vllm:v1", image_pull_secrets=("registry",)),
    )


def test_deployment_is_taken_as_it_is_and_its_pod_may_run(
    api: Api, namespace: str, served: ServedRevision
) -> None:
    stored = api.create(deployment.build_deployment(served))
    template = stored["spec"]["template"]
    metadata = {"name": "pod", "namespace": namespace, **template["metadata"]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    assert api.create(pod)["status"]["phase"] == "Pending"


def test_scaling_takes_nothing_but_the_replicas(
    api: Api, namespace: str, served: ServedRevision
) -> None:
    before = api.create(deployment.build_deployment(served))["spec"]
    scaled = deployment.build_replicas_patch(namespace, served.name, 5)
    after = api.apply(scaled, "finetune-operator", force=True)["spec"]
    assert after == before | {"replicas": 5}


def test_moving_the_pointer_keeps_the_address(
    api: Api, namespace: str, served: ServedRevision
) -> None:
    before = api.create(endpoint_service.build_endpoint_service(served.endpoint, 1, "glossary-r1"))
    for number, app in ((2, "isvc.glossary-r2-predictor"), (3, "glossary-r3")):
        moved = endpoint_service.build_selector_patch(namespace, "glossary", number, app)
        after = api.apply(moved, "finetune-operator", force=True)
        assert after["spec"] == before["spec"] | {"selector": {"app": app}}
        assert after["metadata"]["labels"]["finetune.dev/revision"] == str(number)
