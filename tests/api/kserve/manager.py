"""The writes of KServe's manager, as measured with KServe 0.20.0 (Standard mode, all webhooks on).

For one InferenceService KServe writes a Deployment, a Service and an HPA `<name>-predictor`; a
first status whose url and address are set long before a pod answers; a model state that is Pending;
and Ready only after the pod is ready. `stop` deletes these objects and removes url, address and
components. The pod is created here too, because there is no Deployment controller and no kubelet.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tests.api.client import Api, Manifest

NOW = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
HPA = "/apis/autoscaling/v2/namespaces/{}/horizontalpodautoscalers"


class KServeManager:
    """KServe's manager for one namespace."""

    def __init__(self, api: Api, namespace: str, pod_address: str) -> None:
        self.api = api
        self.namespace = namespace
        self.pod_address = pod_address

    def create_children(self, name: str) -> None:
        """The writes after the creation of an InferenceService, up to the first status."""
        isvc = self.get_inference_service(name)
        self._deployment(isvc)
        self._service(isvc)
        self._autoscaler(name)
        self._status(name, self._addresses(name) | {"conditions": conditions(ready=False)})

    def start_loading(self, name: str) -> None:
        """The model is loading; the pod exists and is not ready."""
        self._pod(self.get_inference_service(name))
        pending = {"targetModelState": "Pending", "activeModelState": ""}
        model = {"transitionStatus": "InProgress", "states": pending, "copies": {"failedCopies": 0}}
        self._status(name, {"modelStatus": model})
        unavailable = conditions(ready=False, reason="MinimumReplicasUnavailable")
        self._status(name, {"conditions": unavailable})

    def make_pod_ready(self, name: str) -> None:
        """The kubelet and the Deployment controller report that the pod is ready."""
        pod = {
            "phase": "Running",
            "podIP": self.pod_address,
            "podIPs": [{"ip": self.pod_address}],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": NOW}],
        }
        self.api.patch("Pod", self.namespace, f"{name}-predictor-0", {"status": pod}, "status")
        generation = self.api.get("Deployment", self.namespace, f"{name}-predictor")["metadata"]
        deployment = {
            "observedGeneration": generation["generation"],
            "replicas": 1,
            "updatedReplicas": 1,
            "readyReplicas": 1,
            "availableReplicas": 1,
        }
        self.api.patch(
            "Deployment", self.namespace, f"{name}-predictor", {"status": deployment}, "status"
        )

    def make_ready(self, name: str) -> None:
        """The writes after that: every condition is True, the model is Loaded and UpToDate."""
        loaded = {"targetModelState": "Loaded", "activeModelState": "Loaded"}
        model = {
            "transitionStatus": "UpToDate",
            "states": loaded,
            "copies": {"failedCopies": 0, "totalCopies": 1},
        }
        url = f"http://{name}-predictor-{self.namespace}.example.com"
        self._status(
            name,
            {
                "conditions": conditions(ready=True),
                "modelStatus": model,
                "components": {"predictor": {"url": url}},
            },
        )

    def fail_loading(
        self, name: str, transition: str, state: str, reason: str, message: str
    ) -> None:
        """KServe fails to load the model."""
        model = {
            "transitionStatus": transition,
            "states": {"targetModelState": state, "activeModelState": ""},
            "lastFailureInfo": {"reason": reason, "message": message, "exitCode": 1},
        }
        self._status(name, {"modelStatus": model})

    def stop(self, name: str) -> None:
        """The writes after the annotation serving.kserve.io/stop: "true"."""
        self.api.delete("Service", self.namespace, f"{name}-predictor")
        self.api.delete("Deployment", self.namespace, f"{name}-predictor")
        self.api.request("DELETE", f"{HPA.format(self.namespace)}/{name}-predictor")
        self.api.delete("Pod", self.namespace, f"{name}-predictor-0")
        stopped = conditions(ready=False, reason="Stopped", stopped=True)
        gone = {"url": None, "address": None, "components": None}
        self._status(name, {"conditions": stopped, "modelStatus": {"transitionStatus": ""}} | gone)

    def get_inference_service(self, name: str) -> Manifest:
        """The InferenceService as the API server has it now."""
        return self.api.get("InferenceService", self.namespace, name)

    def _addresses(self, name: str) -> Manifest:
        host = f"{name}-predictor.{self.namespace}.svc.cluster.local"
        return {
            "url": f"http://{name}-{self.namespace}.example.com",
            "address": {"url": f"http://{host}"},
        }

    def _status(self, name: str, patch: Manifest) -> None:
        self.api.patch("InferenceService", self.namespace, name, {"status": patch}, "status")

    def _deployment(self, isvc: Manifest) -> None:
        name = isvc["metadata"]["name"]
        predictor = isvc["spec"]["predictor"]
        container = {"name": "kserve-container", "image": "vllm:v1"}
        self.api.create(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": self._metadata(isvc, f"{name}-predictor"),
                "spec": {
                    "replicas": predictor["minReplicas"],
                    "selector": {"matchLabels": {"app": f"isvc.{name}-predictor"}},
                    "template": {
                        "metadata": {"labels": pod_labels(isvc)},
                        "spec": {"containers": [container]},
                    },
                },
            }
        )

    def _service(self, isvc: Manifest) -> None:
        name = isvc["metadata"]["name"]
        self.api.create(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": self._metadata(isvc, f"{name}-predictor"),
                "spec": {
                    "selector": {"app": f"isvc.{name}-predictor"},
                    "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
                },
            }
        )

    def _autoscaler(self, name: str) -> None:
        """KServe creates one, although the InferenceService disables autoscaling."""
        target = {"type": "Utilization", "averageUtilization": 80}
        metric = {"type": "Resource", "resource": {"name": "cpu", "target": target}}
        predictor = f"{name}-predictor"
        scaled = {"apiVersion": "apps/v1", "kind": "Deployment", "name": predictor}
        body = {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": predictor},
            "spec": {
                "minReplicas": 1,
                "maxReplicas": 1,
                "metrics": [metric],
                "scaleTargetRef": scaled,
            },
        }
        self.api.request("POST", HPA.format(self.namespace), body, fieldValidation="Strict")

    def _pod(self, isvc: Manifest) -> None:
        name = isvc["metadata"]["name"]
        container = {"name": "kserve-container", "image": "vllm:v1"}
        self.api.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": f"{name}-predictor-0",
                    "namespace": self.namespace,
                    "labels": pod_labels(isvc),
                },
                "spec": {"containers": [container]},
            }
        )

    def _metadata(self, isvc: Manifest, name: str) -> Manifest:
        owner = {
            "apiVersion": isvc["apiVersion"],
            "kind": isvc["kind"],
            "name": isvc["metadata"]["name"],
            "uid": isvc["metadata"]["uid"],
            "controller": True,
        }
        return {
            "name": name,
            "namespace": self.namespace,
            "labels": pod_labels(isvc),
            "ownerReferences": [owner],
        }


def pod_labels(isvc: Manifest) -> dict[str, str]:
    """KServe copies the labels of the InferenceService and of its predictor to its children."""
    name = isvc["metadata"]["name"]
    own = {
        "app": f"isvc.{name}-predictor",
        "component": "predictor",
        "serving.kserve.io/inferenceservice": name,
    }
    copied: dict[str, str] = isvc["spec"]["predictor"].get("labels", {})
    return {**isvc["metadata"].get("labels", {}), **copied, **own}


def conditions(ready: bool, reason: str = "", stopped: bool = False) -> list[dict[str, Any]]:
    """The four conditions; IngressReady is True before any pod answers."""
    truth = "True" if ready else "False"
    wanted = {"IngressReady": "True", "PredictorReady": truth, "Ready": truth}
    out: list[dict[str, Any]] = [
        {"type": kind, "status": status, "lastTransitionTime": NOW}
        | ({"reason": reason} if reason and status == "False" else {})
        for kind, status in wanted.items()
    ]
    halted = {"type": "Stopped", "status": str(stopped), "severity": "Info"}
    return [*out, {**halted, "lastTransitionTime": NOW}]
