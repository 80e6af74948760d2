"""HTTP questions to pods: progress of a stage, answers of a served model.

A reconcile says in its Decision what it wants to know; the question is put here, and when there
is an answer the key is looked at again. Pods are not trusted: answers are small, JSON, and no
redirect is followed. Nothing else in the operator talks to pods.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import aiohttp

from finetune_operator.decision import HttpRequest, HttpResponse, Key

ANSWER_LIMIT = 64 * 1024
CONCURRENCY = 64


class HttpPoller:
    """The questions that are wanted now, and the newest answer to each."""

    def __init__(self, answered: Callable[[Key], None], concurrency: int = CONCURRENCY) -> None:
        self.answers: dict[str, HttpResponse] = {}
        self._answered = answered
        self._limit = asyncio.Semaphore(concurrency)
        self._wanted: dict[Key, dict[str, HttpRequest]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._due: dict[str, float] = {}
        self._session: aiohttp.ClientSession | None = None

    def want(self, key: Key, asks: Iterable[HttpRequest]) -> None:
        """What the key wants to know from now on; what it does not name is forgotten."""
        wanted = {ask.id: ask for ask in asks}
        for ask_id, old in self._wanted.pop(key, {}).items():
            new = wanted.get(ask_id)
            if new is None or (new.url, new.body) != (old.url, old.body):
                self._forget(ask_id)
        if not wanted:
            return
        self._wanted[key] = wanted
        for ask in wanted.values():
            if ask.id not in self._tasks:
                self._tasks[ask.id] = asyncio.create_task(self._ask(key, ask), name=f"ask {ask.id}")

    async def close(self) -> None:
        """Stop asking."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def _forget(self, ask_id: str) -> None:
        task = self._tasks.pop(ask_id, None)
        if task is not None:
            task.cancel()
        self.answers.pop(ask_id, None)
        self._due.pop(ask_id, None)

    async def _ask(self, key: Key, ask: HttpRequest) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._due.get(ask.id, 0.0) - loop.time()))
        async with self._limit:
            answer = await self._fetch(ask)
        self.answers[ask.id] = answer
        self._due[ask.id] = loop.time() + ask.interval
        del self._tasks[ask.id]
        self._answered(key)

    async def _fetch(self, ask: HttpRequest) -> HttpResponse:
        method = "GET" if ask.body is None else "POST"
        try:
            async with (
                asyncio.timeout(ask.timeout),
                self._open().request(
                    method, ask.url, json=ask.body, allow_redirects=False
                ) as response,
            ):
                return _read(response.status, await _content(response))
        except TimeoutError:
            return _failed(f"no answer within {ask.timeout:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return _failed(f"{type(error).__name__}: {error}")

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Pods come and go: a kept connection is of little use and may be a dead one.
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session


async def _content(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > ANSWER_LIMIT:
            raise ValueError(f"the answer has more than {ANSWER_LIMIT} bytes")
    return bytes(content)


def _read(status: int, content: bytes) -> HttpResponse:
    if 300 <= status < 400:
        return _failed(f"redirect {status} is not followed", status)
    try:
        body: Any = json.loads(content) if content else None
    except (ValueError, RecursionError):
        return _failed("the answer is not JSON", status)
    return HttpResponse(at=time.time(), status=status, body=body)


def _failed(error: str, status: int | None = None) -> HttpResponse:
    return HttpResponse(at=time.time(), status=status, error=error[:500])
