"""HTTP poller: requests to pods, for the progress of a stage and the answers of a served model, and
queries for events.

A Decision lists the requests that its key needs. The poller repeats them, and each response
enqueues the key; the next reconcile reads it from the `cache`. Pods are not trusted: a response is
small and JSON, and no redirect is followed. Nothing else in the operator talks to pods.

Events are queried while a job lacks pods, and not watched: the API server keeps no cache of them,
so a watch would expire again and again, and every list would read the events of the whole cluster.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import aiohttp

from finetune_operator.decision import EventQuery, HttpRequest, HttpResponse, Key
from finetune_operator.engine.kube_client import ApiError, KubeClient

RESPONSE_LIMIT_BYTES = 64 * 1024
CONCURRENCY = 64


class HttpPoller:
    """The requests that decisions list now, and the newest response to each."""

    def __init__(self, client: KubeClient, on_response: Callable[[Key], None]) -> None:
        self.responses: dict[str, HttpResponse] = {}
        self._client = client
        self._on_response = on_response
        self._limit = asyncio.Semaphore(CONCURRENCY)
        self._requests: dict[Key, dict[str, HttpRequest | EventQuery]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._due: dict[str, float] = {}
        self._session: aiohttp.ClientSession | None = None

    def set_requests(self, key: Key, requests: Iterable[HttpRequest | EventQuery]) -> None:
        """Poll these for the key from now on; drop its other requests and their responses."""
        by_id = {request.id: request for request in requests}
        for request_id, old in self._requests.pop(key, {}).items():
            new = by_id.get(request_id)
            if new is None or replace(new, interval=old.interval) != old:
                self._drop(request_id)
        if not by_id:
            return
        self._requests[key] = by_id
        for request in by_id.values():
            if request.id not in self._tasks:
                poll = self._poll(key, request)
                self._tasks[request.id] = asyncio.create_task(poll, name=f"poll {request.id}")

    async def close(self) -> None:
        """Stop polling."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def _drop(self, request_id: str) -> None:
        task = self._tasks.pop(request_id, None)
        if task is not None:
            task.cancel()
        self.responses.pop(request_id, None)
        self._due.pop(request_id, None)

    async def _poll(self, key: Key, request: HttpRequest | EventQuery) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._due.get(request.id, 0.0) - loop.time()))
        async with self._limit:
            response = await (
                self._query(request) if isinstance(request, EventQuery) else self._send(request)
            )
        self.responses[request.id] = response
        self._due[request.id] = loop.time() + request.interval
        del self._tasks[request.id]
        self._on_response(key)

    async def _query(self, query: EventQuery) -> HttpResponse:
        try:
            found = await self._client.list_events(query.namespace, query.uid, query.reason)
        except ApiError as error:
            return _error_response(str(error))
        return HttpResponse(at=time.time(), status=200, body=found)

    async def _send(self, request: HttpRequest) -> HttpResponse:
        method = "GET" if request.body is None else "POST"
        try:
            async with (
                asyncio.timeout(request.timeout),
                self._open_session().request(
                    method, request.url, json=request.body, allow_redirects=False
                ) as response,
            ):
                return _parse_response(response.status, await _read_body(response))
        except TimeoutError:
            return _error_response(f"no answer within {request.timeout:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return _error_response(f"{type(error).__name__}: {error}")

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Pods come and go: a kept-alive connection is of little use and may be dead.
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > RESPONSE_LIMIT_BYTES:
            raise ValueError(f"the answer has more than {RESPONSE_LIMIT_BYTES} bytes")
    return bytes(content)


def _parse_response(status: int, content: bytes) -> HttpResponse:
    if 300 <= status < 400:
        return _error_response(f"redirect {status} is not followed", status)
    try:
        body: Any = json.loads(content) if content else None
    except (ValueError, RecursionError):
        return _error_response("the answer is not JSON", status)
    return HttpResponse(at=time.time(), status=status, body=body)


def _error_response(error: str, status: int | None = None) -> HttpResponse:
    return HttpResponse(at=time.time(), status=status, error=error[:500])
