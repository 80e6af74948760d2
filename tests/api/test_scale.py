"""The scale subresource of a ModelEndpoint: `kubectl scale` and autoscalers."""

from __future__ import annotations

from typing import Any

import pytest

from hack.cluster.apiserver import ControlPlane
from hack.cluster.errors import ClusterError
from tests.api.client import Api, Manifest, object_path
from tests.unit.endpoints.world import World, exporting_job, following

AUTOSCALER = "system:serviceaccount:kube-system:horizontal-pod-autoscaler"


@pytest.fixture
def served(api: Api, namespace: str) -> Manifest:
    """An endpoint on the API server, with the status of one that serves the model of a job."""
    world = World(following())
    world.load(exporting_job("a"))
    world.roll_out()
    made = following()
    made["metadata"] = {"name": "glossary", "namespace": namespace}
    api.create(made)
    return api.patch("ModelEndpoint", namespace, "glossary", {"status": world.status}, "status")


def read_scale(api: Api, namespace: str) -> Manifest:
    return api.request("GET", object_path("ModelEndpoint", namespace, "glossary", "scale"))


def test_the_scale_has_the_pods_of_the_active_revision_and_their_selector(
    api: Api, namespace: str, served: Manifest
) -> None:
    scale = read_scale(api, namespace)
    assert (scale["apiVersion"], scale["kind"]) == ("autoscaling/v1", "Scale")
    assert scale["spec"] == {"replicas": 1}
    selector = "finetune.dev/endpoint=glossary,finetune.dev/revision=1"
    assert scale["status"] == {"replicas": 1, "selector": selector}
    assert api.request("GET", object_path("Pod", namespace), labelSelector=selector)["items"] == []


@pytest.mark.parametrize("name", ["mep", "modelendpoint"])
def test_kubectl_scale_changes_the_replicas_and_nothing_else(
    control_plane: ControlPlane, api: Api, namespace: str, served: Manifest, name: str
) -> None:
    control_plane.kubectl("scale", "-n", namespace, f"{name}/glossary", "--replicas=3")
    found = api.get("ModelEndpoint", namespace, "glossary")
    assert found["spec"] == {**served["spec"], "replicas": 3}
    assert found["status"] == served["status"]
    assert found["metadata"]["generation"] == served["metadata"]["generation"] + 1


def test_an_endpoint_is_not_scaled_to_zero(
    control_plane: ControlPlane, namespace: str, served: Manifest
) -> None:
    with pytest.raises(ClusterError, match="greater than or equal to 1"):
        control_plane.kubectl("scale", "-n", namespace, "mep/glossary", "--replicas=0")


def test_an_autoscaler_finds_the_endpoint_and_may_scale_it(
    control_plane: ControlPlane, api: Api, namespace: str, served: Manifest
) -> None:
    target = {"apiVersion": "finetune.dev/v1alpha1", "kind": "ModelEndpoint", "name": "glossary"}
    metric = {"type": "Pods", "pods": {"metric": {"name": "vllm:num_requests_waiting"}}}
    metric["pods"] |= {"target": {"type": "AverageValue", "averageValue": "4"}}  # type: ignore[operator]
    spec = {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 4, "metrics": [metric]}
    scaler: dict[str, Any] = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "glossary", "namespace": namespace},
        "spec": spec,
    }
    path = f"/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers"
    assert api.request("POST", path, scaler, fieldValidation="Strict")["spec"] == spec
    for verb in ("get", "update"):
        attributes = {"verb": verb, "group": "finetune.dev", "resource": "modelendpoints"}
        attributes |= {"subresource": "scale", "namespace": namespace, "name": "glossary"}
        review = {"spec": {"user": AUTOSCALER, "resourceAttributes": attributes}}
        reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        assert api.request("POST", reviews, review)["status"]["allowed"], verb
    scale = read_scale(api, namespace)
    scale["spec"]["replicas"] = 2
    put = object_path("ModelEndpoint", namespace, "glossary", "scale")
    assert api.request("PUT", put, scale)["spec"]["replicas"] == 2
