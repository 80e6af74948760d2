"""gs:// and https:// sources go through the proxy that the environment names.

huggingface_hub and botocore read these variables by themselves; aiohttp only where it is asked to.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from finetune_trainer.runtime.errors import StageError
from finetune_trainer.sources import Address, open_source

from tests.trainer.servers import running_bucket
from tests.trainer.source_files import NOWHERE, ROWS


@pytest.fixture
def tunnels(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A proxy that refuses every tunnel, and the hosts to which tunnels were requested."""
    requested: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            requested.append(self.path)
            self.send_error(403)

        def log_message(self, format: str, *args: object) -> None:
            """Keep the output of the tests clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.server_port}")
        yield requested
        server.shutdown()
        thread.join()


def test_https_goes_through_the_proxy(tunnels: list[str]) -> None:
    with pytest.raises(StageError):
        open_source(Address("dataset", "https://rows.example/rows.jsonl"), NOWHERE)
    assert set(tunnels) == {"rows.example:443"}


def test_https_goes_past_the_proxy_where_no_proxy_names_the_host(
    tunnels: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "localhost")
    with pytest.raises(StageError):
        open_source(Address("dataset", "https://localhost:9/rows.jsonl"), NOWHERE)
    assert tunnels == []


def test_gs_goes_through_the_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with running_bucket({"data/a.jsonl": ROWS}) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://storage.example")
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        source = open_source(Address("dataset", "gs://acme/data/a.jsonl"), NOWHERE)
        assert source.fetch(source.files[0], tmp_path).read_bytes() == ROWS
