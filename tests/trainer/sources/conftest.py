"""A web server with TLS, for addresses and archives, and a metadata server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.trainer.servers import Web, make_certificate, running_web
from tests.trainer.source_files import ROWS

ACCOUNT = "/computeMetadata/v1/instance/service-accounts/default/"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(autouse=True)
def _proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxies but those of the test, after which what a source has set is undone."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def web(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with running_web({"rows.jsonl": ROWS}, certificate) as running:
        yield running


@pytest.fixture
def metadata_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The host of a metadata server of GKE, which gives every caller the token `gke-token`."""
    token = {"access_token": "gke-token", "expires_in": 3600, "token_type": "Bearer"}
    account = {"email": "default", "aliases": ["default"], "scopes": ["https://scope.example"]}
    answers = {"/": "", f"{ACCOUNT}token": json.dumps(token), ACCOUNT: json.dumps(account)}

    class Metadata(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answers.get(self.path.split("?")[0])
            self.send_response(404 if body is None else 200)
            self.send_header("Metadata-Flavor", "Google")
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write((body or "").encode())

        def log_message(self, format: str, *args: object) -> None:
            """Keep the output of the tests clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        host = f"127.0.0.1:{server.server_port}"
        for name in ("GCE_METADATA_HOST", "GCE_METADATA_IP"):
            monkeypatch.setenv(name, host)
        # google-auth reads the variable when it is imported, which an earlier test may have done.
        monkeypatch.setattr("google.auth.compute_engine._metadata._GCE_METADATA_HOST", host)
        yield host
        server.shutdown()
        thread.join()
