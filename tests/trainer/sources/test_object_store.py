"""s3:// against a real S3 server, gs:// against a fake one, https:// against one with TLS."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from finetune_trainer.runtime.errors import RetryableError
from finetune_trainer.sources import Address, Credentials, open_source
from finetune_trainer.sources.snapshot import open_snapshot

from hack.testservers.s3 import S3Server, s3_server
from tests.trainer.servers import Bucket, Web, make_service_account, running_bucket
from tests.trainer.source_files import (
    NOWHERE,
    ROWS,
    failure,
    ignore_progress,
    on_s3,
    paths,
    s3_client,
)


@pytest.fixture(scope="module")
def s3(tiny_model_folder: Path) -> Iterator[S3Server]:
    with s3_server() as server:
        client = s3_client(server)
        client.mkdir("acme")
        client.pipe_file("acme/data/train.jsonl", ROWS * 3)
        client.pipe_file("acme/data/more/b.jsonl", ROWS)
        client.pipe_file("acme/data2/other.jsonl", ROWS)
        client.put(f"{tiny_model_folder}/", "acme/models/tiny/", recursive=True)
        yield server


def test_s3_object_is_found_and_fetched(s3: S3Server, tmp_path: Path) -> None:
    source = open_source(on_s3(s3, "s3://acme/data/train.jsonl"), NOWHERE)
    assert paths(source) == ["train.jsonl"]
    assert source.files[0].size == len(ROWS * 3)
    assert source.fetch(source.files[0], tmp_path).read_bytes() == ROWS * 3
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_s3_prefix_is_a_folder_and_no_longer_name_matches_it(s3: S3Server) -> None:
    for uri in ("s3://acme/data", "s3://acme/data/"):
        assert paths(open_source(on_s3(s3, uri), NOWHERE)) == ["more/b.jsonl", "train.jsonl"]


def test_s3_model_is_downloaded_and_cached(
    s3: S3Server, tmp_path: Path, tiny_model_folder: Path
) -> None:
    for uid in ("job-1", "job-2"):
        address = on_s3(s3, "s3://acme/models/tiny", "model")
        snapshot = open_snapshot(address, NOWHERE, tmp_path, uid, ignore_progress)
        snapshot.fetch_small_files()
        folder = snapshot.fetch_all_files()
    weights = (tiny_model_folder / "model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == weights
    assert list(tmp_path.iterdir()) == [folder]


def test_s3_revision_changes_with_the_content(s3: S3Server) -> None:
    client = s3_client(s3)
    seen = set()
    for content in (b"one", b"two"):
        client.pipe_file("acme/changing.jsonl", content)
        seen.add(open_source(on_s3(s3, "s3://acme/changing.jsonl"), NOWHERE).revision)
    assert len(seen) == 2


def test_s3_names_may_have_any_character(s3: S3Server, tmp_path: Path) -> None:
    name = "My Data c#/50%off töne?[1] a+b&c.jsonl"
    client = s3_client(s3)
    client.pipe_file(f"acme/odd/{name}", ROWS)
    for uri in (f"s3://acme/odd/{name}", f"s3://acme/odd/{quote(name)}"):
        source = open_source(on_s3(s3, uri), NOWHERE)
        assert paths(source) == [name.rpartition("/")[2]]
        assert source.folder is None
        assert source.fetch(source.files[0], tmp_path).read_bytes() == ROWS
    assert name in paths(open_source(on_s3(s3, "s3://acme/odd"), NOWHERE))


@pytest.mark.parametrize("uri", ["s3://acme/gone.jsonl", "s3://acme/dat", "s3://no-bucket/x.jsonl"])
def test_s3_object_that_does_not_exist_is_not_found(s3: S3Server, uri: str) -> None:
    refusal = failure(on_s3(s3, uri)).failure
    assert refusal.reason == "DatasetNotFound"
    assert uri in refusal.message


def test_s3_bucket_with_an_impossible_name_is_refused(s3: S3Server) -> None:
    assert failure(on_s3(s3, "s3://[/rows.jsonl")).failure.reason == "BadAddress"


def test_s3_with_a_wrong_key_is_denied(s3: S3Server) -> None:
    wrong = on_s3(s3, "s3://acme/data/train.jsonl", AWS_SECRET_ACCESS_KEY="wrong-secret")
    refusal = failure(wrong).failure
    assert refusal.reason == "AccessDenied"
    assert "AWS_SECRET_ACCESS_KEY" in (refusal.remedy or "")
    assert "wrong-secret" not in refusal.message


def test_s3_without_keys_is_requested_anonymously_and_denied(s3: S3Server) -> None:
    address = on_s3(s3, "s3://acme/data", AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    assert failure(address).failure.reason == "AccessDenied"


def test_s3_that_does_not_answer_is_retryable(s3: S3Server) -> None:
    address = on_s3(s3, "s3://acme/data", AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert failure(address, kind=RetryableError).failure.reason == "SourceUnavailable"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    objects = {"data/a.jsonl": ROWS, "data/a.jsonl.bak": b"old", "data2/b.jsonl": ROWS}
    with running_bucket(objects) as running:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", running.url)
        yield running


@pytest.mark.parametrize(
    ("uri", "names"),
    [("gs://acme/data/a.jsonl", ["a.jsonl"]), ("gs://acme/data", ["a.jsonl", "a.jsonl.bak"])],
)
def test_gs_object_and_prefix_are_found_and_fetched(
    bucket: Bucket, tmp_path: Path, uri: str, names: list[str]
) -> None:
    source = open_source(Address("dataset", uri), NOWHERE)
    assert paths(source) == names
    assert source.fetch(source.files[0], tmp_path).read_bytes() == ROWS


@pytest.mark.parametrize(
    "name", ["My Data/a b.jsonl", "50%off.jsonl", "c#/töne?.jsonl", "x[1].jsonl", "a+b&c.jsonl"]
)
def test_gs_names_may_have_any_character(bucket: Bucket, tmp_path: Path, name: str) -> None:
    bucket.objects[name] = ROWS
    for uri in (f"gs://acme/{name}", f"gs://acme/{quote(name)}"):
        source = open_source(Address("dataset", uri), NOWHERE)
        assert paths(source) == [name.rpartition("/")[2]]
        assert source.fetch(source.files[0], tmp_path).read_bytes() == ROWS


@pytest.mark.parametrize("uri", ["gs://acme/dat", "gs://acme/gone.jsonl", "gs://other/a.jsonl"])
def test_gs_object_that_does_not_exist_is_not_found(bucket: Bucket, uri: str) -> None:
    assert failure(Address("dataset", uri)).failure.reason == "DatasetNotFound"


def test_gs_private_bucket_opens_with_a_service_account_only(
    bucket: Bucket, tmp_path: Path
) -> None:
    bucket.token = "gs-token"
    refusal = failure(Address("dataset", "gs://acme/data/a.jsonl")).failure
    assert refusal.reason == "AccessDenied"
    assert "GOOGLE_APPLICATION_CREDENTIALS_JSON" in (refusal.remedy or "")
    account = make_service_account(f"{bucket.url}/token")
    secrets = Credentials({"GOOGLE_APPLICATION_CREDENTIALS_JSON": account})
    source = open_source(Address("dataset", "gs://acme/data/a.jsonl", None, secrets), NOWHERE)
    assert source.fetch(source.files[0], tmp_path).read_bytes() == ROWS


def test_gs_key_that_is_not_json_is_reported_without_repeating_it(bucket: Bucket) -> None:
    secrets = Credentials({"GOOGLE_APPLICATION_CREDENTIALS_JSON": "s3cret"})
    refusal = failure(Address("dataset", "gs://acme/data", None, secrets)).failure
    assert refusal.reason == "AccessDenied"
    assert "s3cret" not in refusal.message


@pytest.mark.parametrize("key", ["null", "[]", '"cloud"', '"/etc/hostname"', '"browser"'])
def test_gs_key_that_is_no_object_is_refused(bucket: Bucket, key: str) -> None:
    secrets = Credentials({"GOOGLE_APPLICATION_CREDENTIALS_JSON": key})
    refusal = failure(Address("dataset", "gs://acme/data", None, secrets)).failure
    assert refusal.reason == "AccessDenied"
    assert "is no JSON object" in refusal.message


def test_https_file_is_found_and_fetched(web: Web, tmp_path: Path) -> None:
    source = open_source(Address("dataset", f"{web.url}/rows.jsonl?signature=s3cret"), NOWHERE)
    assert paths(source) == ["rows.jsonl"]
    assert source.fetch(source.files[0], tmp_path).read_bytes() == ROWS
    assert "s3cret" not in source.address.public_uri


@pytest.mark.parametrize(
    ("secrets", "header"),
    [
        ({"TOKEN": "t0ken"}, "Bearer t0ken"),
        (
            {"USERNAME": "ada", "PASSWORD": "lace"},
            "Basic " + base64.b64encode(b"ada:lace").decode(),
        ),
    ],
)
def test_https_credentials_are_sent(
    web: Web, tmp_path: Path, secrets: dict[str, str], header: str
) -> None:
    web.authorization = header
    refusal = failure(Address("dataset", f"{web.url}/rows.jsonl")).failure
    assert refusal.reason == "AccessDenied"
    source = open_source(
        Address("dataset", f"{web.url}/rows.jsonl", None, Credentials(secrets)), NOWHERE
    )
    assert source.fetch(source.files[0], tmp_path).read_bytes() == ROWS


@pytest.mark.parametrize("name", ["a b.jsonl", "a%20b.jsonl", "t%C3%B6ne.jsonl", "c%23.jsonl"])
def test_https_names_are_decoded(web: Web, tmp_path: Path, name: str) -> None:
    web.files[unquote(name)] = ROWS
    source = open_source(Address("dataset", f"{web.url}/{name}"), NOWHERE)
    assert paths(source) == [unquote(name)]
    assert source.fetch(source.files[0], tmp_path).read_bytes() == ROWS


def test_https_address_with_a_fragment_is_refused(web: Web) -> None:
    web.files["c"] = ROWS
    refusal = failure(Address("dataset", f"{web.url}/c#.jsonl")).failure
    assert refusal.reason == "BadAddress"
    assert "%23" in (refusal.remedy or "")


def test_https_file_that_does_not_exist_is_not_found(web: Web) -> None:
    assert failure(Address("dataset", f"{web.url}/gone.jsonl")).failure.reason == "DatasetNotFound"


def test_errors_of_an_https_server_are_retryable(web: Web) -> None:
    web.broken_with = 503
    error = failure(Address("dataset", f"{web.url}/rows.jsonl"), kind=RetryableError)
    assert "503" in error.failure.message


def test_https_server_with_an_unknown_certificate_is_not_trusted(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    failure(Address("dataset", f"{web.url}/rows.jsonl"), kind=RetryableError)
    assert web.fetched == []


def test_https_address_with_a_password_is_refused_without_repeating_it() -> None:
    refusal = failure(Address("dataset", "https://ada:lace@host/rows.jsonl")).failure
    assert refusal.reason == "BadAddress"
    assert "lace" not in refusal.message


@pytest.mark.parametrize("place", ["[", "[:::", "u:lace@[", "\u2100", "127.0.0.1:99999999"])
def test_https_address_that_is_not_a_valid_url_is_refused(place: str) -> None:
    refusal = failure(Address("dataset", f"https://{place}/rows.jsonl")).failure
    assert refusal.reason == "BadAddress"
    assert "lace" not in refusal.message
