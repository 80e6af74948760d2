"""A stand-in for vLLM: the list of models, and one sentence as the answer to every chat request."""

from __future__ import annotations

import json
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

PORT = 8080
"""The port of vLLM's pods; a loopback address for each server keeps it free."""


class ModelServer:
    """An OpenAI API on 127.x.y.z:8080."""

    def __init__(self) -> None:
        self.model = "glossary"
        self.answer_text = "A compiler translates programs."
        self.chat_requests: list[dict[str, Any]] = []
        low = uuid.uuid4().bytes
        self.address = f"127.{low[0] % 200 + 20}.{low[1]}.{low[2] % 250 + 1}"
        self._http = ThreadingHTTPServer((self.address, PORT), self._handler())
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> ModelServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer({"data": [{"id": server.model}]})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.chat_requests.append(json.loads(body))
                self._answer({"choices": [{"message": {"content": server.answer_text}}]})

            def _answer(self, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                """Print nothing."""

        return Handler
