"""No address of a job leads to a metadata service or to the pod, by whatever way.

The servers of the tests are on the loopback interface, so their ports are trusted as those of the
platform team would be; the metadata service of the tests is on another address of it.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from aiobotocore.httpsession import AIOHTTPSession
from finetune_api.protocol import CLOUD_IDENTITY_ENV
from finetune_trainer.runtime.connection_guard import ConnectionGuard
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources import Address, Credentials, open_source

from hack.testservers.s3 import s3_server
from tests.trainer.servers import (
    Repository,
    Web,
    make_service_account,
    running_bucket,
    running_hub,
)
from tests.trainer.source_files import NOWHERE, ROWS, failure, on_s3

METADATA = "169.254.169.254"
Guard = Callable[..., None]
_guards: list[ConnectionGuard] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hooks cannot be removed, so this one lasts longer than the guard of a test."""
    for guard in _guards:
        guard(event, arguments)


sys.addaudithook(_hook)


@pytest.fixture
def guard() -> Iterator[Guard]:
    """Guards the process as prepare does; the servers at the given URLs are the platform team's."""

    def start(*trusted: str) -> None:
        names = ("HF_ENDPOINT", "AWS_ENDPOINT_URL")
        _guards.append(ConnectionGuard(dict(zip(names, trusted, strict=False))))

    yield start
    _guards.clear()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """DNS records of the test: addresses by name."""
    records: dict[str, str] = {}
    resolve = socket.getaddrinfo

    def answer(host: Any, *rest: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        return resolve(records.get(name, host), *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return records


def refused(address: Address, host: str = METADATA) -> None:
    error = failure(address).failure
    assert error.reason == "ForbiddenAddress", error
    assert error.message.startswith(
        f"{address.spec_field}.uri {address.public_uri} leads to {host}"
    )
    assert "Name another server" in (error.remedy or "")


def test_an_address_that_resolves_to_the_metadata_service_is_refused(
    guard: Guard, names: dict[str, str]
) -> None:
    guard()
    names["rows.example"] = METADATA
    refused(Address("dataset", "https://rows.example/rows.jsonl", None, Credentials(), "model"))


@pytest.mark.parametrize("host", ["2852039166", "0xa9fea9fe"])
def test_other_spellings_of_the_metadata_service_are_refused(guard: Guard, host: str) -> None:
    guard()
    secrets = Credentials({"HF_ENDPOINT": f"http://{host}"})
    refused(Address("model", "hf://acme/tiny", None, secrets))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"])
def test_the_pod_itself_is_refused(guard: Guard, host: str) -> None:
    guard()
    error = failure(Address("dataset", f"https://{host}:9400/rows.jsonl")).failure
    assert error.reason == "ForbiddenAddress"


def test_a_server_that_redirects_to_the_metadata_service_is_refused(web: Web, guard: Guard) -> None:
    guard(web.url)
    web.redirects_to = f"https://{METADATA}/latest/meta-data/"
    refused(Address("dataset", f"{web.url}/rows.jsonl"))


def test_a_server_that_redirects_after_it_was_listed_is_refused(
    web: Web, guard: Guard, tmp_path: Path
) -> None:
    guard(web.url)
    address = Address("dataset", f"{web.url}/rows.jsonl")
    source = open_source(address, NOWHERE)
    web.redirects_to = f"https://{METADATA}/latest/meta-data/"
    with pytest.raises(UserError, match=f"leads to {METADATA}"):
        source.fetch(source.files[0], tmp_path)
    assert not list(tmp_path.glob("rows.jsonl"))


def test_a_name_that_is_rebound_after_it_was_listed_is_refused(
    guard: Guard, names: dict[str, str], tiny_model_folder: Path, tmp_path: Path
) -> None:
    with running_hub({"acme/tiny": Repository(tiny_model_folder)}) as hub:
        guard(hub.url)
        secrets = Credentials({"HF_ENDPOINT": hub.url.replace("127.0.0.1", "hub.example")})
        names["hub.example"] = "127.0.0.1"
        source = open_source(Address("model", "hf://acme/tiny", None, secrets), NOWHERE)
        names["hub.example"] = METADATA
        huggingface_hub.close_session()
        with pytest.raises(UserError, match=f"leads to {METADATA}"):
            source.fetch(source.files[0], tmp_path)


def test_a_name_with_several_forbidden_addresses_is_refused(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard()
    both = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (METADATA, 443)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.170.2", 443)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    error = failure(Address("dataset", "https://rows.example/rows.jsonl")).failure
    assert error.reason == "ForbiddenAddress"


def test_an_s3_endpoint_of_a_secret_is_refused_at_once(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard()
    sent: list[object] = []
    send = AIOHTTPSession.send

    async def record(self: object, request: object) -> object:
        sent.append(request)
        return await send(self, request)

    monkeypatch.setattr(AIOHTTPSession, "send", record)
    secrets = {
        "AWS_ENDPOINT_URL": f"http://{METADATA}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    refused(Address("dataset", "s3://acme/rows.jsonl", None, Credentials(secrets)))
    assert len(sent) == 1


def test_an_s3_endpoint_of_the_platform_team_is_used(guard: Guard) -> None:
    with s3_server() as server:
        guard("", server.url)
        error = failure(on_s3(server, "s3://acme/none.jsonl")).failure
    assert error.reason == "DatasetNotFound"


def test_a_hub_of_a_secret_is_refused(guard: Guard) -> None:
    guard()
    secrets = Credentials({"HF_ENDPOINT": f"http://{METADATA}"})
    refused(Address("model", "hf://acme/tiny", None, secrets))


def test_a_hub_that_redirects_to_the_metadata_service_is_refused(
    guard: Guard, tiny_model_folder: Path
) -> None:
    with running_hub({"acme/tiny": Repository(tiny_model_folder)}) as hub:
        guard(hub.url)
        hub.redirects_to = f"http://{METADATA}/"
        refused(Address("model", "hf://acme/tiny", None, Credentials({"HF_ENDPOINT": hub.url})))


def test_a_token_endpoint_of_a_service_account_is_refused(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_bucket({"rows.jsonl": ROWS}) as bucket:
        guard(bucket.url)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
        key = make_service_account(f"http://{METADATA}/token")
        secrets = Credentials({"GOOGLE_APPLICATION_CREDENTIALS_JSON": key})
        refused(Address("dataset", "gs://acme/rows.jsonl", None, secrets))


def test_the_identity_of_the_pod_comes_from_the_metadata_service_although_data_does_not(
    guard: Guard, metadata_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with running_bucket({"rows.jsonl": ROWS}) as bucket:
        bucket.token = "gke-token"
        guard(bucket.url)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
        monkeypatch.setenv(CLOUD_IDENTITY_ENV, "true")
        source = open_source(Address("dataset", "gs://acme/rows.jsonl"), NOWHERE)
        assert source.fetch(source.files[0], tmp_path).read_bytes() == ROWS
        refused(Address("dataset", f"https://{metadata_server}/rows.jsonl"), "127.0.0.1")


def test_a_hub_in_a_secret_turns_the_library_off_that_is_no_python() -> None:
    from finetune_trainer.sources.hub import configure_hub_library

    environ: dict[str, str] = {}
    configure_hub_library(environ, [Credentials({"HF_TOKEN": "t"})])
    assert "HF_HUB_DISABLE_XET" not in environ
    configure_hub_library(environ, [Credentials({"HF_ENDPOINT": "https://hub.example"})])
    assert environ["HF_HUB_DISABLE_XET"] == "1"
