"""Kube client: the only module that talks to the API server.

Objects go in and come out as plain JSON data: the generated models of the Kubernetes client would
cost more time than the request. Every call has a deadline. Failed reads are retried here because
that is always safe; a failed write raises a typed error, and the work queue retries the key.
`writer` sends the writes of decisions, `relist` the lists; kopf uses the same credentials.
"""

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from kubernetes.aio import client, config

from finetune_operator.decision import MANAGER, Manifest, ObjectRef
from finetune_operator.engine.kinds import EVENT, Resource, resource
from finetune_operator.engine.server_clock import ServerClock

TIMEOUT = 15.0
"""Seconds for any one request, connection included."""
READ_ATTEMPTS = 3
PAGE = 500
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


class ApiError(Exception):
    """The API server did not carry out a request; the message says which one and why."""

    label = "ClusterError"
    """Value of the label `result` in metrics; part of the API, whatever the class is called."""


class NotFound(ApiError):
    """404: no such object, or no such kind."""

    label = "NotFound"


class Conflict(ApiError):
    """409 on a write: the object has changed since the write was decided."""

    label = "Conflict"


class AlreadyExists(ApiError):
    """409 on a create: the name is taken."""

    label = "AlreadyExists"


class Forbidden(ApiError):
    """403: RBAC, a quota, admission, or a namespace that is being deleted."""

    label = "Forbidden"


class Invalid(ApiError):
    """400 or 422: the object breaks its schema. A retry does not help."""

    label = "Invalid"


class Unavailable(ApiError):
    """No answer, 429 or 5xx: worth a retry, after `retry_after` seconds when that is set."""

    label = "Unavailable"

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NoConnection(ApiError):
    """There is no usable kubeconfig, and the process does not run in a pod."""

    label = "NoConnection"


@dataclass(frozen=True)
class Credentials:
    """How to reach the API server, for the other client in this process (kopf)."""

    server: str
    ca_path: str | None
    certificate_path: str | None
    private_key_path: str | None
    token: str | None
    insecure: bool


async def _load_default(configuration: Any) -> None:
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        config.load_incluster_config(client_configuration=configuration)
    else:
        await config.load_kube_config(client_configuration=configuration)


class KubeClient:
    """A connection to one API server. Close it when done."""

    def __init__(self, configuration: Any, clock: ServerClock | None = None) -> None:
        self.clock = clock or ServerClock()
        self._configuration = configuration
        self._api = client.ApiClient(configuration)
        self._api.user_agent = MANAGER

    @classmethod
    async def connect(
        cls, kubeconfig: str | None = None, clock: ServerClock | None = None
    ) -> "KubeClient":
        """Use the given kubeconfig, else the pod's service account, else the usual kubeconfig."""
        configuration = client.Configuration()
        try:
            if kubeconfig:
                await config.load_kube_config(
                    config_file=kubeconfig, client_configuration=configuration
                )
            else:
                await _load_default(configuration)
        except Exception as error:  # the client raises its own, OSError and YAML errors here
            where = kubeconfig or "the service account of this pod or ~/.kube/config"
            raise NoConnection(f"cannot use {where}: {error}") from error
        return cls(configuration, clock)

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def credentials(self) -> Credentials:
        """Address and current credentials; a rotated token is read again."""
        headers: dict[str, str] = {}
        await self._api.update_params_for_auth(headers, [], ["BearerToken"], "", "GET", None)
        header = next((v for k, v in headers.items() if k.lower() == "authorization"), "")
        conf = self._configuration
        return Credentials(
            server=conf.host,
            ca_path=conf.ssl_ca_cert,
            certificate_path=conf.cert_file,
            private_key_path=conf.key_file,
            # "Bearer" from a kubeconfig, "bearer" from a pod's service account.
            token=header.partition(" ")[2].strip() or None,
            insecure=not conf.verify_ssl,
        )

    async def get(self, kind: str, namespace: str, name: str) -> Manifest:
        """One object; raises NotFound when it does not exist."""
        return await self._read(resource(kind).path(namespace, name))

    async def list(self, of: Resource, namespace: str = "") -> tuple[list[Manifest], str]:
        """All objects of a kind, and the resourceVersion of the list."""
        items: list[Manifest] = []
        version = ""
        async for page in self._pages(of.path(namespace), of.selector):
            items.extend(page.get("items") or ())
            version = page["metadata"].get("resourceVersion", "")
        for item in items:  # the items of a list lack these two
            item.setdefault("kind", of.kind)
            item.setdefault("apiVersion", of.api_version)
        return items, version

    async def _pages(self, path: str, selector: str) -> AsyncIterator[Manifest]:
        query = {"limit": str(PAGE)} | ({"labelSelector": selector} if selector else {})
        while True:
            page = await self._read(path, query)
            yield page
            token = page["metadata"].get("continue")
            if not token:
                return
            query["continue"] = token

    async def list_events(self, namespace: str, uid: str, reason: str) -> Sequence[Manifest]:
        """The events about the object with this uid that have a reason, at most PAGE of them."""
        query = {"fieldSelector": f"involvedObject.uid={uid},reason={reason}", "limit": str(PAGE)}
        found = await self._read(EVENT.path(namespace), query)
        return found.get("items") or ()

    async def kinds_of(self, of: Resource) -> frozenset[str]:
        """The kinds that the API server serves in this group and version."""
        try:
            found = await self._read(of.root)
        except NotFound:
            return frozenset()
        return frozenset(each["kind"] for each in found.get("resources") or ())

    async def get_openapi(self, api_version: str) -> Manifest:
        """The OpenAPI document of a group and version; raises NotFound when it is not served."""
        return await self._read(f"/openapi/v3/apis/{api_version}", key="openapi")

    async def create(self, manifest: Manifest) -> Manifest:
        """POST; raises AlreadyExists when the name is taken."""
        of, namespace, _ = _address(manifest)
        query = {"fieldManager": MANAGER, "fieldValidation": "Strict"}
        return await self._request("POST", of.path(namespace), query, manifest)

    async def apply(self, manifest: Manifest) -> Manifest:
        """Server-side apply, forced: it takes over fields that other clients set."""
        of, namespace, name = _address(manifest)
        query = {"fieldManager": MANAGER, "force": "true", "fieldValidation": "Strict"}
        return await self._request(
            "PATCH", of.path(namespace, name), query, manifest, content_type=APPLY_PATCH
        )

    async def replace(self, manifest: Manifest, timeout: float = TIMEOUT) -> Manifest:
        """PUT; raises Conflict when metadata.resourceVersion is no longer the newest."""
        of, namespace, name = _address(manifest)
        return await self._request(
            "PUT", of.path(namespace, name), {"fieldManager": MANAGER}, manifest, timeout=timeout
        )

    async def patch(
        self, kind: str, namespace: str, name: str, patch: Mapping[str, Any], subresource: str = ""
    ) -> Manifest:
        """JSON merge-patch (RFC 7386); a resourceVersion in it is a precondition."""
        path = resource(kind).path(namespace, name, subresource)
        query = {"fieldManager": MANAGER, "fieldValidation": "Strict"}
        return await self._request("PATCH", path, query, patch, content_type=MERGE_PATCH)

    async def delete(self, ref: ObjectRef) -> Manifest:
        """Delete in the background; returns the object while it still exists, else a Status."""
        options: Manifest = {"propagationPolicy": "Background"}
        if ref.uid is not None:
            options["preconditions"] = {"uid": ref.uid}
        return await self._request(
            "DELETE", resource(ref.kind).path(ref.namespace, ref.name), {}, options
        )

    async def _read(
        self, path: str, query: Mapping[str, str] | None = None, key: str = "kind"
    ) -> Manifest:
        for attempt in range(1, READ_ATTEMPTS + 1):
            try:
                return await self._request("GET", path, query or {}, None, key=key)
            except Unavailable as error:
                if attempt == READ_ATTEMPTS or error.retry_after is not None:
                    raise
                await asyncio.sleep(0.2 * attempt * random.uniform(0.5, 1.5))
        raise AssertionError("unreachable")

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Mapping[str, Any] | None,
        content_type: str = "application/json",
        timeout: float = TIMEOUT,
        key: str = "kind",
    ) -> Manifest:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        headers["User-Agent"] = self._api.user_agent
        await self._api.update_params_for_auth(
            headers, [], ["BearerToken"], path, method, body, request_auth=None
        )
        url = f"{self._configuration.host}{path}{'?' if query else ''}{urlencode(query)}"
        what = f"{method} {path}"
        sent_at = self.clock.steady()
        try:
            async with asyncio.timeout(timeout):
                answer = await self._api.rest_client.request(
                    method, url, headers=headers, body=body
                )
                date = answer.headers.get("Date")
                self.clock.observe_date(date, sent_at, self.clock.steady())
                data = await answer.read()
        except TimeoutError as error:
            raise Unavailable(f"{what}: no answer within {timeout:g} s") from error
        except (TypeError, ValueError):
            raise  # our own bug: a manifest that is not JSON
        except Exception as error:  # the transport has many error types
            raise Unavailable(f"{what}: {error!r}") from error
        return _decode(what, method, answer.status, answer.headers, data, key)


def _address(manifest: Manifest) -> tuple[Resource, str, str]:
    metadata = manifest["metadata"]
    of = resource(manifest["kind"])
    if manifest["apiVersion"] != of.api_version:
        raise Invalid(f"{of.kind} {metadata['name']}: apiVersion must be {of.api_version}")
    return of, metadata.get("namespace", ""), metadata["name"]


def _decode(
    what: str, method: str, status: int, headers: Mapping[str, str], data: bytes, key: str
) -> Manifest:
    if 200 <= status < 300:
        return _parse_object(what, data, key)
    message = f"{what}: {status} {_error_message(data)}"
    if status == 404:
        raise NotFound(message)
    if status == 409:
        raise (AlreadyExists if method == "POST" else Conflict)(message)
    if status == 403:
        raise Forbidden(message)
    if status in (400, 422):
        raise Invalid(message)
    if status == 429 or status >= 500:
        raise Unavailable(message, _parse_retry_after(headers))
    raise ApiError(message)


def _parse_object(what: str, data: bytes, key: str) -> Manifest:
    """Every answer of the API server is an object with this key; a proxy in between sends anything
    else."""
    try:
        found: Any = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict) or key not in found:
        raise Unavailable(f"{what}: the answer is no Kubernetes object: {_excerpt(data)}")
    return found


def _excerpt(data: bytes) -> str:
    return data[:200].decode(errors="replace")


def _error_message(data: bytes) -> str:
    try:
        return str(json.loads(data).get("message", ""))[:1000]
    except (ValueError, AttributeError):  # a proxy in between answers in HTML
        return _excerpt(data)


def _parse_retry_after(headers: Mapping[str, str]) -> float | None:
    try:
        return float(int(headers["Retry-After"]))
    except (KeyError, ValueError):  # absent, or an HTTP date
        return None
