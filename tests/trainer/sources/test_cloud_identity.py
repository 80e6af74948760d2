"""gs:// with the identity that GKE gives to a ServiceAccount, which leaves no file in the pod."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from finetune_api.protocol import CLOUD_IDENTITY_ENV
from finetune_trainer.sources import Address, open_source

from tests.trainer.servers import running_bucket
from tests.trainer.source_files import NOWHERE, ROWS, failure

ACCOUNT = "/computeMetadata/v1/instance/service-accounts/default/"
ADDRESS = Address("dataset", "gs://acme/data/a.jsonl")


@pytest.fixture
def metadata_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The metadata server of a node of GKE, which gives every caller the token `gke-token`."""
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
        yield
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("metadata_server")
def test_only_a_pod_of_a_service_account_asks_for_its_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with running_bucket({"data/a.jsonl": ROWS}) as bucket:
        bucket.token = "gke-token"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
        assert failure(ADDRESS).failure.reason == "AccessDenied"
        monkeypatch.setenv(CLOUD_IDENTITY_ENV, "true")
        source = open_source(ADDRESS, NOWHERE)
        assert source.fetch(source.files[0], tmp_path).read_bytes() == ROWS


@pytest.mark.usefixtures("metadata_server")
@pytest.mark.parametrize("hosts", [None, "", ".svc,.cluster.local,10.0.0.0/8"])
def test_the_token_never_comes_from_the_proxy_that_the_storage_is_behind(
    hosts: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with running_bucket({"data/a.jsonl": ROWS}) as proxy:
        proxy.token = "gke-token"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://storage.example")
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        if hosts is not None:
            monkeypatch.setenv("NO_PROXY", hosts)
        monkeypatch.setenv(CLOUD_IDENTITY_ENV, "true")
        source = open_source(ADDRESS, NOWHERE)
        assert source.fetch(source.files[0], tmp_path).read_bytes() == ROWS


def test_a_public_object_is_read_without_a_token_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A job of another cloud that names a ServiceAccount for its s3:// sources."""
    for name in ("GCE_METADATA_HOST", "GCE_METADATA_IP"):
        monkeypatch.setenv(name, "127.0.0.1:9")
    monkeypatch.setenv(CLOUD_IDENTITY_ENV, "true")
    with running_bucket({"data/a.jsonl": ROWS}) as bucket:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
        source = open_source(ADDRESS, NOWHERE)
        assert source.fetch(source.files[0], tmp_path).read_bytes() == ROWS
