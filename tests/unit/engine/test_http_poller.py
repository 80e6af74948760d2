from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise

import pytest
from aiohttp import web
from finetune_operator.decision import HttpRequest, HttpResponse, Key
from finetune_operator.engine.http_poller import ANSWER_LIMIT, HttpPoller

KEY = Key("FineTuneJob", "default", "a")


class Pod:
    """A real HTTP server in the place of a pod."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, float]] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.path, asyncio.get_running_loop().time()))
        if request.path == "/echo":
            return web.json_response({"you said": await request.json()})
        if request.path == "/big":
            return web.Response(body=b'"' + b"x" * ANSWER_LIMIT + b'"')
        if request.path == "/elsewhere":
            raise web.HTTPFound("/progress")
        if request.path == "/html":
            return web.Response(text="<html>")
        if request.path == "/slow":
            await asyncio.sleep(30)
        return web.Response(body=json.dumps({"step": len(self.asked)}).encode())


@pytest.fixture
async def pod() -> AsyncIterator[Pod]:
    pod, app = Pod(), web.Application()
    app.router.add_route("*", "/{path}", pod.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    pod.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield pod
    await runner.cleanup()


@pytest.fixture
async def ask_once(pod: Pod) -> AsyncIterator[Callable[[str], Awaitable[HttpResponse]]]:
    answered = asyncio.Event()
    asks = HttpPoller(lambda _key: answered.set())

    async def ask_once(path: str, body: dict[str, str] | None = None) -> HttpResponse:
        asks.want(KEY, [HttpRequest("x", pod.url + path, body, timeout=0.5)])
        async with asyncio.timeout(5):
            await answered.wait()
        return asks.answers["x"]

    yield ask_once
    await asks.close()


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
async def test_an_answer_is_small_json_from_the_pod_itself(
    ask_once: Callable[[str], Awaitable[HttpResponse]],
    path: str,
    status: int | None,
    error: str | None,
) -> None:
    answer = await ask_once(path)
    assert answer.status == status
    if error is None:
        assert answer.body == {"step": 1}
    else:
        assert error in (answer.error or "")
        assert answer.body is None


async def test_a_question_with_a_body_is_posted(
    ask_once: Callable[..., Awaitable[HttpResponse]],
) -> None:
    answer = await ask_once("/echo", {"prompt": "hello"})
    assert answer.body == {"you said": {"prompt": "hello"}}


async def test_an_ended_pod_is_an_error_not_an_exception() -> None:
    answered = asyncio.Event()
    asks = HttpPoller(lambda _key: answered.set())
    asks.want(KEY, [HttpRequest("x", "http://127.0.0.1:9/progress")])
    async with asyncio.timeout(5):
        await answered.wait()
    assert "ClientConnectorError" in (asks.answers["x"].error or "")
    await asks.close()


async def test_a_wanted_question_is_asked_again_after_its_interval_and_no_sooner(pod: Pod) -> None:
    enough = asyncio.Event()
    ask = HttpRequest("x", pod.url + "/progress", interval=0.2)

    def answered(key: Key) -> None:
        # As the engine does: the reconcile that an answer causes wants it again, and so does
        # every other reconcile meanwhile.
        asks.want(key, [ask])
        asks.want(key, [ask])
        if len(pod.asked) == 4:
            enough.set()

    asks = HttpPoller(answered)
    asks.want(KEY, [ask])
    async with asyncio.timeout(10):
        await enough.wait()
    await asks.close()
    times = [at for _, at in pod.asked]
    assert all(later - earlier >= 0.2 for earlier, later in pairwise(times))


async def test_what_is_no_longer_wanted_is_forgotten(pod: Pod) -> None:
    answered = asyncio.Event()
    asks = HttpPoller(lambda _key: answered.set())
    asks.want(
        KEY, [HttpRequest("x", pod.url + "/progress"), HttpRequest("slow", pod.url + "/slow")]
    )
    async with asyncio.timeout(5):
        await answered.wait()
    asks.want(KEY, [HttpRequest("x", "http://127.0.0.1:9/another-pod", interval=60)])
    assert "x" not in asks.answers, "an answer of another pod is no answer to this question"
    asks.want(KEY, [])
    assert not asks.answers
    await asks.close()
