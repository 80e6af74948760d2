"""A TCP proxy in front of the API server whose open streams can be made to go silent.

That is what a dead watch looks like to a client: the connection is open, but no data arrives. New
connections work, so everything but the watches recovers.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType


class Proxy:
    """Forwards a loopback port to another; use it as a context."""

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._silent: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def silence(self) -> int:
        """Drop all data from the server on the connections that are open now; returns how many."""
        self._silent |= {task for task in self._tasks if not task.done()}
        return len(self._silent)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, up_writer}
        for source, sink in ((reader, up_writer), (up_reader, writer)):
            task = asyncio.create_task(self._forward(source, sink))
            self._tasks.add(task)

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        with suppress(ConnectionError):
            while data := await source.read(65536):
                if me in self._silent:
                    continue
                sink.write(data)
                await sink.drain()
            if me not in self._silent:
                sink.close()
