"""What a web server learns to which another one redirects."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources import Address, Credentials, open_source

from tests.trainer.servers import Hub, Web, running_web
from tests.trainer.source_files import NOWHERE, ROWS, failure

SECRETS = [{"USERNAME": "ada", "PASSWORD": "lace"}, {"TOKEN": "t0ken"}]


@pytest.mark.parametrize("secrets", SECRETS, ids=["password", "token"])
def test_credentials_are_not_sent_to_another_server(
    web: Web, certificate: tuple[Path, Path], tmp_path: Path, secrets: dict[str, str]
) -> None:
    address = Address("dataset", f"{web.url}/rows.jsonl", None, Credentials(secrets))
    with running_web({"rows.jsonl": ROWS}, certificate) as other:
        web.redirects_to = f"{other.url}/rows.jsonl"
        source = open_source(address, NOWHERE)
        assert source.fetch(source.files[0], tmp_path).read_bytes() == ROWS
    assert other.authorizations == [None] * 2


def test_credentials_are_sent_to_another_path_of_the_same_server(web: Web) -> None:
    web.redirects["start"] = "/rows.jsonl"
    address = Address("dataset", f"{web.url}/start", None, Credentials({"TOKEN": "t0ken"}))
    open_source(address, NOWHERE)
    assert web.authorizations == ["Bearer t0ken"] * 2


@pytest.mark.parametrize("header", ["Location", "URI"])
def test_a_redirect_to_an_address_without_tls_is_not_followed(
    web: Web, hub: Hub, header: str
) -> None:
    web.redirects_to, web.redirects_by = f"{hub.url}/rows.jsonl", header
    refusal = failure(Address("dataset", f"{web.url}/rows.jsonl")).failure
    assert refusal.reason == "BadAddress"
    assert "redirects to an address without TLS" in refusal.message
    assert hub.requests == 0


def test_a_redirect_to_an_address_without_tls_is_not_followed_after_the_listing(
    web: Web, hub: Hub, tmp_path: Path
) -> None:
    source = open_source(Address("dataset", f"{web.url}/rows.jsonl"), NOWHERE)
    web.redirects_to = f"{hub.url}/rows.jsonl"
    with pytest.raises(UserError, match="redirects to an address without TLS"):
        source.fetch(source.files[0], tmp_path)
    assert hub.requests == 0
