"""A small synchronous client for tests: plain dicts in and out, every error with its status.

Writes request strict field validation, as kubectl does, so that an unknown field is an error.
Paths are built from the kind, because discovery would cost each test a round trip.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from kubernetes import config
from kubernetes.client.exceptions import ApiException

Manifest = dict[str, Any]

CLUSTER_SCOPED = {
    "AcceleratorProfile",
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "Namespace",
    "Node",
    "PersistentVolume",
    "SelfSubjectAccessReview",
}
API_VERSIONS = {
    "FineTuneJob": "finetune.dev/v1alpha1",
    "ModelEndpoint": "finetune.dev/v1alpha1",
    "AcceleratorProfile": "finetune.dev/v1alpha1",
    "CustomResourceDefinition": "apiextensions.k8s.io/v1",
    "Deployment": "apps/v1",
    "Job": "batch/v1",
    "Lease": "coordination.k8s.io/v1",
    "InferenceService": "serving.kserve.io/v1beta1",
    "ServingRuntime": "serving.kserve.io/v1alpha1",
    "Role": "rbac.authorization.k8s.io/v1",
    "RoleBinding": "rbac.authorization.k8s.io/v1",
    "ClusterRole": "rbac.authorization.k8s.io/v1",
    "ClusterRoleBinding": "rbac.authorization.k8s.io/v1",
}


@dataclass
class ApiError(Exception):
    """An error response of the API server: HTTP status, reason and message."""

    status: int
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.status} {self.reason}: {self.message}"


def object_path(kind: str, namespace: str = "", name: str = "", subresource: str = "") -> str:
    """Where the API server keeps a kind; core kinds are those that API_VERSIONS does not name."""
    version = API_VERSIONS.get(kind, "v1")
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    inside = f"/namespaces/{namespace}" if namespace and kind not in CLUSTER_SCOPED else ""
    tail = "".join(f"/{part}" for part in (name, subresource) if part)
    return f"{root}{inside}/{kind.lower()}s{tail}"


class Api:
    """The API server as the user of one kubeconfig sees it."""

    def __init__(self, kubeconfig: Path, token: str | None = None) -> None:
        self.client = config.new_client_from_config(str(kubeconfig))
        self.headers = {"Accept": "application/json"}
        if token:
            # The administrator's certificate would take precedence over the token.
            self.client.configuration.cert_file = self.client.configuration.key_file = None
            self.client = type(self.client)(self.client.configuration)
            self.headers["Authorization"] = f"Bearer {token}"

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        content: str = "application/json",
        **query: Any,
    ) -> Manifest:
        """One request; raises ApiError."""
        url = f"{self.client.configuration.host}{path}" + (f"?{urlencode(query)}" if query else "")
        headers = {**self.headers, "Content-Type": content}
        try:
            response = self.client.call_api(method, url, headers, body)
            response.read()
        except ApiException as error:
            raise _api_error(error) from None
        if not 200 <= response.status < 300:
            raise _api_error(response)
        out: Manifest = json.loads(response.data)
        return out

    def create(self, manifest: Manifest, namespace: str = "") -> Manifest:
        """POST; unknown fields are an error."""
        space = namespace or manifest["metadata"].get("namespace", "")
        path = object_path(manifest["kind"], space)
        return self.request("POST", path, manifest, fieldValidation="Strict")

    def get(self, kind: str, namespace: str, name: str) -> Manifest:
        """One object; ApiError 404 when there is none."""
        return self.request("GET", object_path(kind, namespace, name))

    def list(self, kind: str, namespace: str = "") -> list[Manifest]:
        """The objects of a kind, in one namespace or in all."""
        items: list[Manifest] = self.request("GET", object_path(kind, namespace))["items"]
        return items

    def patch(
        self, kind: str, namespace: str, name: str, body: Manifest, subresource: str = ""
    ) -> Manifest:
        """JSON merge patch of an object or of its status."""
        path = object_path(kind, namespace, name, subresource)
        content = "application/merge-patch+json"
        return self.request("PATCH", path, body, content, fieldValidation="Strict")

    def apply(self, manifest: Manifest, manager: str, force: bool = False) -> Manifest:
        """Server-side apply as a field manager."""
        meta = manifest["metadata"]
        path = object_path(manifest["kind"], meta.get("namespace", ""), meta["name"])
        query = {"fieldManager": manager, "fieldValidation": "Strict"}
        query |= {"force": "true"} if force else {}
        return self.request("PATCH", path, manifest, "application/apply-patch+yaml", **query)

    def delete(self, kind: str, namespace: str, name: str) -> Manifest:
        """Delete an object in the background."""
        path = object_path(kind, namespace, name)
        # The default for a Job is to orphan its pods, for which no controller runs here.
        return self.request("DELETE", path, propagationPolicy="Background")


def _api_error(answer: Any) -> ApiError:
    raw = getattr(answer, "body", None) or getattr(answer, "data", b"")
    text = raw.decode() if isinstance(raw, bytes) else str(raw)
    try:
        status = json.loads(text)
        return ApiError(status["code"], status.get("reason", ""), status["message"])
    except (ValueError, KeyError):
        return ApiError(answer.status, answer.reason or "", text)


def wait_established(api: Api, seconds: float = 60.0) -> None:
    """`kubectl wait` fails on a CRD that has no conditions yet."""
    deadline = time.monotonic() + seconds
    while not all(_is_established(each) for each in api.list("CustomResourceDefinition")):
        assert time.monotonic() < deadline, "the CRDs were never established"
        time.sleep(0.1)


def _is_established(crd: Manifest) -> bool:
    every = crd.get("status", {}).get("conditions") or []
    return any(each["type"] == "Established" and each["status"] == "True" for each in every)
