"""Secrets of a job are in none of the files, logs, results and errors of its stages."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finetune_api.protocol import ExitCode
from finetune_trainer.runtime.errors import StageError
from finetune_trainer.sources import Address, Credentials, open_source
from finetune_trainer.sources.address import public_spec

from hack.testservers.s3 import S3Server, s3_server
from tests.trainer.prepare_world import World, run_as_pod
from tests.trainer.servers import Hub, Web, make_certificate, running_web
from tests.trainer.source_files import NOWHERE, s3_client
from tests.trainer.tiny import tiny_rows

TOKEN, KEY, SIGNATURE = "hf_plantedtoken", "plantedkey", "plantedsignature"


def rows_file() -> bytes:
    return "".join(json.dumps(row) + "\n" for row in tiny_rows(100)).encode()


@pytest.fixture
def s3() -> Iterator[S3Server]:
    with s3_server(secret_key=KEY) as server:
        client = s3_client(server)
        client.mkdir("acme")
        client.pipe_file("acme/rows.jsonl", rows_file())
        yield server


def stored(world: World) -> Iterator[tuple[Path, bytes]]:
    """What the pod has written to its volumes, and its termination message."""
    for path in world.root.rglob("*"):
        if path.is_file():
            yield path, path.read_bytes()


def test_a_pod_shows_its_secrets_nowhere(world: World, hub: Hub, s3: S3Server) -> None:
    hub.repositories["acme/tiny"].token = TOKEN
    hub.signature = SIGNATURE
    code, result, log = run_as_pod(
        world,
        {"dataset": {"train": [{"uri": "s3://acme/rows.jsonl"}]}},
        HF_ENDPOINT=hub.url,
        AWS_ENDPOINT_URL=s3.url,
        FINETUNE_SECRET_MODEL_HF_TOKEN=TOKEN,
        FINETUNE_SECRET_DATA_0_AWS_ACCESS_KEY_ID=s3.access_key,
        FINETUNE_SECRET_DATA_0_AWS_SECRET_ACCESS_KEY=KEY,
    )
    assert (code, result.outcome) == (ExitCode.OK, "Succeeded"), log
    assert "model.safetensors" in hub.fetched
    for planted in (TOKEN, KEY, SIGNATURE):
        assert planted not in log
        assert [path for path, content in stored(world) if planted.encode() in content] == []


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    certificate = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    resolve = socket.getaddrinfo

    def answer(host: Any, *rest: Any, **options: Any) -> Any:
        return resolve("localhost" if host == "rows.example" else host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    with running_web({"rows.jsonl": rows_file()}, certificate) as running:
        running.url = running.url.replace("localhost", "rows.example")
        yield running


def test_the_query_of_an_address_and_a_password_are_stored_nowhere(
    world: World, web: Web, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO")
    login = base64.b64encode(f"user:{KEY}".encode()).decode()
    web.authorization = f"Basic {login}"
    source = {"uri": f"{web.url}/rows.jsonl?sig={SIGNATURE}"}
    world.secrets["dataset.train[0]"] = Credentials({"USERNAME": "user", "PASSWORD": KEY})
    result = world.prepare(dataset={"train": [source]})
    shown = result.model_dump_json() + caplog.text + "".join(capfd.readouterr())
    assert f"{web.url}/rows.jsonl" in result.model_dump_json()
    for planted in (KEY, SIGNATURE, login):
        assert planted not in shown
        assert [path for path, content in stored(world) if planted.encode() in content] == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 429, 500, 503])
def test_no_error_of_an_address_shows_its_query_or_its_password(
    web: Web, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    caplog.set_level("INFO")
    web.broken_with = status
    secrets = Credentials({"TOKEN": TOKEN})
    uri = f"{web.url}/rows.jsonl?sig={SIGNATURE}"
    with pytest.raises(StageError) as caught:
        open_source(Address("dataset", uri, None, secrets), NOWHERE)
    shown = repr(caught.value) + caught.value.failure.model_dump_json() + caplog.text
    for planted in (TOKEN, SIGNATURE):
        assert planted not in shown


def test_a_tracker_gets_no_query_of_an_address() -> None:
    uri = f"https://example.org/rows.jsonl?sig={SIGNATURE}"
    model = {"uri": "hf://acme/tiny", "adapter": {"uri": uri}}
    spec = {"model": model, "dataset": {"train": [{"uri": uri}, {"uri": "s3://a/b?c"}]}}
    assert public_spec(spec) == {
        "model": {"uri": "hf://acme/tiny", "adapter": {"uri": "https://example.org/rows.jsonl"}},
        "dataset": {
            "train": [{"uri": "https://example.org/rows.jsonl"}, {"uri": "s3://a/b?c"}],
        },
    }
