"""gs:// with the identity that GKE gives to a ServiceAccount, which leaves no file in the pod."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetune_api.protocol import CLOUD_IDENTITY_ENV
from finetune_trainer.sources import Address, open_source

from tests.trainer.servers import running_bucket
from tests.trainer.source_files import NOWHERE, ROWS, failure

ADDRESS = Address("dataset", "gs://acme/data/a.jsonl")


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
