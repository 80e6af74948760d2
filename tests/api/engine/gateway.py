"""An HTTP gateway in front of the API server that injects the faults that a test chooses.

It forwards requests with an administrator's certificate and streams watches through. The test
chooses a fault for each request; some happen before the API server has received the request, some
after it has carried it out, which a client cannot distinguish.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import aiohttp
from aiohttp import web

from hack.cluster.apiserver import ControlPlane

HOP = {
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "transfer-encoding",
    "content-encoding",
}


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request."""

    delay: float = 0.0
    """Seconds before anything else happens."""
    status: int | None = None
    """Answered with this status; the API server never sees the request."""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    """With a status its body; without one what replaces the answer of the API server."""
    cut: int | None = None
    """The request is carried out, but the connection breaks after this many bytes of the
    answer."""


RESET = Fault(status=0)
"""The connection breaks before the request is carried out."""

Choose = Callable[[web.BaseRequest], Fault | None]


class Gateway:
    """Use it as a context; `choose` may be set at any time."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self.choose: Choose = lambda _request: None
        self.kubeconfig = folder / "gateway.kubeconfig"
        self._url = plane.url
        pki = plane.folder / "pki"
        self._ssl = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._ssl.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        self._open: dict[int, web.BaseRequest] = {}
        self._healed = asyncio.Event()
        self._healed.set()

    async def __aenter__(self) -> Gateway:
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(limit=0, ssl=self._ssl)
        self._client = aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False
        )
        server = web.Server(self._answer)
        self._runner = web.ServerRunner(server, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.kubeconfig.write_text(_KUBECONFIG.format(url=f"http://{host}:{port}"))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._healed.set()
        self.drop()
        await self._runner.cleanup()
        await self._client.close()

    @property
    def watch_count(self) -> int:
        """How many watches are open."""
        return sum("watch" in request.query for request in list(self._open.values()))

    def drop(self) -> int:
        """Break every connection on which a request is open; returns how many."""
        broken = list(self._open.values())
        for each in broken:
            _abort(each)
        return len(broken)

    def partition(self) -> None:
        """From now on nothing passes in either direction, and neither side gets an error."""
        self._healed.clear()

    def heal(self) -> None:
        """What was held up passes, late."""
        self._healed.set()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self._open[id(request)] = request
        try:
            await self._healed.wait()
            fault = self.choose(request) or Fault()
            await asyncio.sleep(fault.delay)
            if fault.status == 0:
                return _abort(request)
            if fault.status is not None:
                return web.Response(
                    status=fault.status, headers=fault.headers, body=fault.body or b"{}"
                )
            return await self._forward(request, fault)
        except ConnectionError:  # the client has gone
            return _abort(request)
        finally:
            self._open.pop(id(request))

    async def _forward(self, request: web.BaseRequest, fault: Fault) -> web.StreamResponse:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP}
        async with self._client.request(
            request.method,
            self._url + request.path_qs,
            headers=headers,
            data=await request.read() or None,
        ) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in HOP}
            if "watch" in request.query:
                return await self._stream(request, answer, kept)
            content = await answer.read() if fault.body is None else fault.body
            if fault.cut is None:
                return web.Response(status=answer.status, headers=kept, body=content)
            response = web.StreamResponse(status=answer.status, headers=kept)
            response.content_length = len(content)
            await response.prepare(request)
            await response.write(content[: fault.cut])
            return _abort(request, response)

    async def _stream(
        self, request: web.BaseRequest, answer: aiohttp.ClientResponse, headers: dict[str, str]
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers=headers)
        await response.prepare(request)
        with suppress(ConnectionError, aiohttp.ClientError):
            async for chunk in answer.content.iter_any():
                await self._healed.wait()
                await response.write(chunk)
        return response


def _abort(
    request: web.BaseRequest, response: web.StreamResponse | None = None
) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return response or web.Response(status=500)


_KUBECONFIG = """apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "{url}"}}}}]
users: [{{name: u, user: {{}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
"""
