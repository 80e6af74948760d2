from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise

import kubernetes.aio.client
import pytest
from aiohttp import web
from finetune_operator.decision import EventQuery, HttpRequest, HttpResponse, Key
from finetune_operator.engine.http_poller import RESPONSE_LIMIT_BYTES, HttpPoller
from finetune_operator.engine.kube_client import KubeClient

KEY = Key("FineTuneJob", "default", "a")


class Pod:
    """A real HTTP server in place of a pod."""

    def __init__(self) -> None:
        self.received: list[tuple[str, float]] = []
        self.url = ""

    async def respond(self, request: web.Request) -> web.StreamResponse:
        self.received.append((request.path, asyncio.get_running_loop().time()))
        if request.path == "/echo":
            return web.json_response({"received": await request.json()})
        if request.path == "/big":
            return web.Response(body=b'"' + b"x" * RESPONSE_LIMIT_BYTES + b'"')
        if request.path == "/elsewhere":
            raise web.HTTPFound("/progress")
        if request.path == "/html":
            return web.Response(text="<html>")
        if request.path == "/slow":
            await asyncio.sleep(30)
        if request.path == "/api/v1/namespaces/denied/events":
            return web.json_response({"kind": "Status", "message": "events is denied"}, status=403)
        if request.path == "/api/v1/namespaces/default/events":
            events = [{"message": request.query["fieldSelector"]}]
            return web.json_response({"kind": "EventList", "metadata": {}, "items": events})
        return web.Response(body=json.dumps({"step": len(self.received)}).encode())


@contextlib.asynccontextmanager
async def running_pod(address: str) -> AsyncIterator[Pod]:
    """A pod that listens on this address alone."""
    pod, app = Pod(), web.Application()
    app.router.add_route("*", "/{path:.*}", pod.respond)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, address, 0).start()
    host = f"[{address}]" if ":" in address else address
    pod.url = f"http://{host}:{runner.addresses[0][1]}"
    yield pod
    await runner.cleanup()


@pytest.fixture
async def pod() -> AsyncIterator[Pod]:
    async with running_pod("127.0.0.1") as pod:
        yield pod


@pytest.fixture
async def kube_client(pod: Pod) -> AsyncIterator[KubeClient]:
    """A client whose API server is the same HTTP server."""
    client = KubeClient(kubernetes.aio.client.Configuration(host=pod.url))
    yield client
    await client.close()


@pytest.fixture
async def poll_once(
    pod: Pod, kube_client: KubeClient
) -> AsyncIterator[Callable[[str], Awaitable[HttpResponse]]]:
    responded = asyncio.Event()
    poller = HttpPoller(kube_client, lambda _key: responded.set())

    async def poll_once(path: str, body: dict[str, str] | None = None) -> HttpResponse:
        poller.set_requests(KEY, [HttpRequest("x", pod.url + path, body, timeout=0.5)])
        async with asyncio.timeout(5):
            await responded.wait()
        return poller.responses["x"]

    yield poll_once
    await poller.close()


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("/progress", 200, None),
        ("/big", None, "more than 65536 bytes"),
        ("/elsewhere", 302, "is not followed"),
        ("/html", 200, "not JSON"),
        ("/slow", None, "no answer within 0.5 s"),
    ],
)
async def test_a_response_is_small_json_from_the_pod_itself(
    poll_once: Callable[[str], Awaitable[HttpResponse]],
    path: str,
    status: int | None,
    error: str | None,
) -> None:
    response = await poll_once(path)
    assert response.status == status
    if error is None:
        assert response.body == {"step": 1}
    else:
        assert error in (response.error or "")
        assert response.body is None


async def test_a_request_with_a_body_is_posted(
    poll_once: Callable[..., Awaitable[HttpResponse]],
) -> None:
    response = await poll_once("/echo", {"prompt": "hello"})
    assert response.body == {"received": {"prompt": "hello"}}


async def test_a_pod_with_an_ipv6_address_is_reached(kube_client: KubeClient) -> None:
    responded = asyncio.Event()
    poller = HttpPoller(kube_client, lambda _key: responded.set())
    async with running_pod("::1") as pod:
        poller.set_requests(KEY, [HttpRequest("x", f"{pod.url}/progress")])
        async with asyncio.timeout(5):
            await responded.wait()
    assert poller.responses["x"].body == {"step": 1}
    await poller.close()


async def test_a_pod_that_does_not_listen_is_an_error_and_no_exception(
    kube_client: KubeClient,
) -> None:
    responded = asyncio.Event()
    poller = HttpPoller(kube_client, lambda _key: responded.set())
    poller.set_requests(KEY, [HttpRequest("x", "http://127.0.0.1:9/progress")])
    async with asyncio.timeout(5):
        await responded.wait()
    assert "ClientConnectorError" in (poller.responses["x"].error or "")
    await poller.close()


async def test_a_request_is_repeated_after_its_interval_and_no_sooner(
    pod: Pod, kube_client: KubeClient
) -> None:
    enough = asyncio.Event()
    request = HttpRequest("x", pod.url + "/progress", interval=0.2)

    def on_response(key: Key) -> None:
        # As the engine does: the reconcile that a response causes sets the request again, and so
        # does every other reconcile meanwhile.
        poller.set_requests(key, [request])
        poller.set_requests(key, [request])
        if len(pod.received) == 4:
            enough.set()

    poller = HttpPoller(kube_client, on_response)
    poller.set_requests(KEY, [request])
    async with asyncio.timeout(10):
        await enough.wait()
    await poller.close()
    times = [at for _, at in pod.received]
    assert all(later - earlier >= 0.2 for earlier, later in pairwise(times))


async def test_a_request_that_is_no_longer_set_is_dropped_with_its_response(
    pod: Pod, kube_client: KubeClient
) -> None:
    responded = asyncio.Event()
    poller = HttpPoller(kube_client, lambda _key: responded.set())
    poller.set_requests(
        KEY, [HttpRequest("x", pod.url + "/progress"), HttpRequest("slow", pod.url + "/slow")]
    )
    async with asyncio.timeout(5):
        await responded.wait()
    poller.set_requests(KEY, [HttpRequest("x", "http://127.0.0.1:9/another-pod", interval=60)])
    assert "x" not in poller.responses, "a response of another pod is none to this request"
    poller.set_requests(KEY, [])
    assert not poller.responses
    await poller.close()


@pytest.mark.parametrize(
    ("namespace", "body", "error"),
    [
        ("default", [{"message": "involvedObject.uid=7,reason=FailedCreate"}], None),
        ("denied", None, "403 events is denied"),
    ],
)
async def test_events_are_queried_at_the_api_server(
    kube_client: KubeClient, namespace: str, body: object, error: str | None
) -> None:
    responded = asyncio.Event()
    poller = HttpPoller(kube_client, lambda _key: responded.set())
    poller.set_requests(KEY, [EventQuery("x", namespace, "7", "FailedCreate")])
    async with asyncio.timeout(5):
        await responded.wait()
    response = poller.responses["x"]
    await poller.close()
    assert response.body == body
    assert (error in response.error) if error and response.error else response.error is error
