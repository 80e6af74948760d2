"""Versions of objects: a version is read, or the job fails; never another one instead."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from finetune_api.failure import Failure
from finetune_trainer.runtime.errors import StageError, UserError
from finetune_trainer.sources import Address, Credentials, open_source
from finetune_trainer.sources.dataset_files import describe_source, fetch_data_files

from hack.testservers.s3 import S3Server, s3_server
from tests.trainer.servers import Bucket, Web, running_bucket
from tests.trainer.source_files import (
    NOWHERE,
    ROWS,
    failure,
    ignore_progress,
    on_s3,
    paths,
    s3_client,
)

OLD, NEW = ROWS * 2, ROWS * 3
ODD_NAME = "My Data c#/50%off töne?[1] a+b&c.jsonl"
FIELD = "dataset.train[0]"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        for bucket in ("acme", "plain"):
            client(server).mkdir(bucket)
        client(server).make_bucket_versioned("acme")
        client(server).pipe_file("plain/rows.jsonl", ROWS)
        yield server


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with running_bucket({}) as running:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", running.url)
        yield running


@functools.cache
def client(server: S3Server) -> Any:
    """One client for all uploads: each takes a second to start."""
    return s3_client(server, use_listings_cache=False, version_aware=True)


def put(server: S3Server, name: str, content: bytes) -> str:
    """Upload a version of acme/`name`; returns its ID."""
    client(server).pipe_file(f"acme/{name}", content)
    return str(client(server).info(f"acme/{name}")["VersionId"])


def on_gs(uri: str, version: str | None = None) -> Address:
    return Address("dataset", uri, spec_field=FIELD, version=version)


def read(address: Address, folder: Path) -> bytes:
    """The content of the one object at an address."""
    source = open_source(address, NOWHERE)
    assert source.folder is None
    assert source.files[0].path == address.path.rpartition("/")[2]
    return source.fetch(source.files[0], folder).read_bytes()


def recorded_version(address: Address, folder: Path) -> str | None:
    source = open_source(address, NOWHERE)
    return describe_source(source, fetch_data_files(source, folder, ignore_progress)).version


def not_found(error: StageError, address: Address) -> Failure:
    """The failure of an address whose version cannot be had, after checks of its texts."""
    found = error.failure
    assert found.reason == "VersionNotFound"
    assert address.uri in found.message
    assert address.version is not None
    assert address.version in found.message
    assert f"{FIELD}.version" in (found.remedy or "")
    return found


def test_s3_version_is_read_instead_of_the_newest(s3: S3Server, tmp_path: Path) -> None:
    versions = [put(s3, "a/rows.jsonl", content) for content in (OLD, NEW)]
    for version, content in zip(versions, (OLD, NEW), strict=True):
        address = on_s3(s3, "s3://acme/a/rows.jsonl", version=version)
        assert read(address, tmp_path / version) == content
    assert read(on_s3(s3, "s3://acme/a/rows.jsonl"), tmp_path / "newest") == NEW


def test_s3_version_of_an_object_that_was_deleted_is_read(s3: S3Server, tmp_path: Path) -> None:
    version = put(s3, "gone.jsonl", OLD)
    client(s3).rm_file("acme/gone.jsonl")
    assert failure(on_s3(s3, "s3://acme/gone.jsonl")).failure.reason == "DatasetNotFound"
    assert read(on_s3(s3, "s3://acme/gone.jsonl", version=version), tmp_path) == OLD


def test_s3_version_of_an_object_with_any_name_is_read(s3: S3Server, tmp_path: Path) -> None:
    version = put(s3, ODD_NAME, OLD)
    put(s3, ODD_NAME, NEW)
    for uri in (f"s3://acme/{ODD_NAME}", f"s3://acme/{quote(ODD_NAME)}"):
        source = open_source(on_s3(s3, uri, version=version), NOWHERE)
        assert paths(source) == [ODD_NAME.rpartition("/")[2]]
        assert source.fetch(source.files[0], tmp_path).read_bytes() == OLD


def test_s3_version_has_the_revision_of_its_content(s3: S3Server) -> None:
    version = put(s3, "same.jsonl", OLD)
    newest = open_source(on_s3(s3, "s3://acme/same.jsonl"), NOWHERE).revision
    pinned = on_s3(s3, "s3://acme/same.jsonl", version=version)
    assert open_source(pinned, NOWHERE).revision == newest
    put(s3, "same.jsonl", NEW)
    assert open_source(pinned, NOWHERE).revision == newest


@pytest.mark.parametrize(
    "uri",
    [
        "s3://acme/exists.jsonl",
        "s3://acme/missing.jsonl",
        "s3://plain/rows.jsonl",
        "s3://no-bucket/rows.jsonl",
    ],
)
def test_s3_version_that_does_not_exist_is_not_found(s3: S3Server, uri: str) -> None:
    put(s3, "exists.jsonl", NEW)
    address = on_s3(s3, uri, version="3/NONE")
    not_found(failure(address), address)


def test_s3_version_that_is_removed_before_it_is_read_is_not_found(
    s3: S3Server, tmp_path: Path
) -> None:
    version = put(s3, "expired.jsonl", OLD)
    put(s3, "expired.jsonl", NEW)
    address = on_s3(s3, "s3://acme/expired.jsonl", version=version)
    source = open_source(address, NOWHERE)
    key = {"Bucket": "acme", "Key": "expired.jsonl", "VersionId": version}
    client(s3).call_s3("delete_object", **key)
    with pytest.raises(UserError) as caught:
        source.fetch(source.files[0], tmp_path)
    not_found(caught.value, address)


@pytest.mark.parametrize("uri", ["s3://acme/folder", "s3://acme"])
def test_s3_version_of_a_folder_is_refused(s3: S3Server, uri: str) -> None:
    put(s3, "folder/rows.jsonl", ROWS)
    refusal = failure(on_s3(s3, uri, version="3/NONE")).failure
    assert refusal.reason == "BadAddress"
    assert f"{FIELD}.version" in refusal.message
    assert "sha256" in (refusal.remedy or "")


@pytest.fixture
def other_store(
    web: Web, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> Address:
    """Version v1 of an object on a store that has no versions and answers as the test wants."""
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate[0]))
    web.files["acme/rows.jsonl"] = NEW
    secrets = {"AWS_ENDPOINT_URL": web.url, "AWS_ACCESS_KEY_ID": "a"}
    credentials = Credentials({**secrets, "AWS_SECRET_ACCESS_KEY": "b"})
    return Address("dataset", "s3://acme/rows.jsonl", None, credentials, FIELD, "v1")


def test_s3_version_null_is_no_version(other_store: Address, web: Web) -> None:
    web.headers = {"x-amz-version-id": "null"}
    address = replace(other_store, version="null")
    assert "without a version" in not_found(failure(address), address).message


def test_s3_store_that_ignores_the_version_is_not_read(other_store: Address, web: Web) -> None:
    found = not_found(failure(other_store), other_store)
    assert "without a version" in found.message
    assert "sha256" in (found.remedy or "")
    assert web.fetched == []


@pytest.mark.parametrize(
    ("status", "detail"), [(400, "does not have the form"), (405, "delete marker")]
)
def test_s3_version_that_s3_refuses_is_not_found(
    other_store: Address, web: Web, status: int, detail: str
) -> None:
    web.broken_with = status
    assert detail in not_found(failure(other_store), other_store).message


def test_s3_version_without_permission_is_denied(other_store: Address, web: Web) -> None:
    web.broken_with = 403
    refusal = failure(other_store).failure
    assert refusal.reason == "AccessDenied"
    assert "version v1 of s3://acme/rows.jsonl" in refusal.message
    assert "s3:GetObjectVersion" in (refusal.remedy or "")


def test_gs_generation_is_read_instead_of_the_newest(bucket: Bucket, tmp_path: Path) -> None:
    versions = [bucket.put("a/rows.jsonl", content) for content in (OLD, NEW)]
    for version, content in zip(versions, (OLD, NEW), strict=True):
        assert read(on_gs("gs://acme/a/rows.jsonl", version), tmp_path / version) == content
    assert read(on_gs("gs://acme/a/rows.jsonl"), tmp_path / "newest") == NEW


def test_gs_generation_of_an_object_that_was_deleted_is_read(
    bucket: Bucket, tmp_path: Path
) -> None:
    version = bucket.put("gone.jsonl", OLD)
    del bucket.objects["gone.jsonl"]
    assert failure(on_gs("gs://acme/gone.jsonl")).failure.reason == "DatasetNotFound"
    assert read(on_gs("gs://acme/gone.jsonl", version), tmp_path) == OLD


def test_gs_generation_of_an_object_with_any_name_is_read(bucket: Bucket, tmp_path: Path) -> None:
    version = bucket.put(ODD_NAME, OLD)
    bucket.put(ODD_NAME, NEW)
    for uri in (f"gs://acme/{ODD_NAME}", f"gs://acme/{quote(ODD_NAME)}"):
        source = open_source(on_gs(uri, version), NOWHERE)
        assert paths(source) == [ODD_NAME.rpartition("/")[2]]
        assert source.fetch(source.files[0], tmp_path).read_bytes() == OLD


@pytest.mark.parametrize("uri", ["gs://acme/rows.jsonl", "gs://acme/b.jsonl", "gs://b/rows.jsonl"])
def test_gs_generation_that_does_not_exist_is_not_found(bucket: Bucket, uri: str) -> None:
    bucket.put("rows.jsonl", NEW)
    address = on_gs(uri, "1699999999999999")
    not_found(failure(address), address)


def test_gs_generation_of_a_folder_is_refused(bucket: Bucket) -> None:
    bucket.put("folder/rows.jsonl", ROWS)
    refusal = failure(on_gs("gs://acme/folder", "1700000000000000")).failure
    assert refusal.reason == "BadAddress"
    assert "sha256" in (refusal.remedy or "")


def test_gs_store_that_ignores_the_generation_is_not_read(bucket: Bucket) -> None:
    bucket.put("rows.jsonl", NEW)
    bucket.ignores_generations = True
    address = on_gs("gs://acme/rows.jsonl", "1699999999999999")
    assert "1700000000000000" in not_found(failure(address), address).message


def test_gs_generation_without_permission_is_denied(bucket: Bucket) -> None:
    version = bucket.put("rows.jsonl", NEW)
    bucket.token = "gs-token"
    refusal = failure(on_gs("gs://acme/rows.jsonl", version)).failure
    assert refusal.reason == "AccessDenied"
    assert f"version {version} of gs://acme/rows.jsonl" in refusal.message


def test_the_version_that_was_read_is_recorded(
    s3: S3Server, bucket: Bucket, tmp_path: Path
) -> None:
    old, new = (put(s3, "recorded.jsonl", content) for content in (OLD, NEW))
    uri = "s3://acme/recorded.jsonl"
    assert recorded_version(on_s3(s3, uri, version=old), tmp_path / "old") == old
    assert recorded_version(on_s3(s3, uri), tmp_path / "new") == new
    generation = bucket.put("rows.jsonl", NEW)
    assert recorded_version(on_gs("gs://acme/rows.jsonl"), tmp_path / "gs") == generation


def test_no_version_is_recorded_where_there_is_none(s3: S3Server, web: Web, tmp_path: Path) -> None:
    put(s3, "several/rows.jsonl", ROWS)
    assert recorded_version(on_s3(s3, "s3://acme/several"), tmp_path / "folder") is None
    assert recorded_version(on_s3(s3, "s3://plain/rows.jsonl"), tmp_path / "plain") is None
    assert recorded_version(Address("dataset", f"{web.url}/rows.jsonl"), tmp_path / "web") is None


@pytest.mark.parametrize("is_deleted", [False, True])
def test_no_version_is_recorded_of_an_object_that_was_replaced(
    s3: S3Server, tmp_path: Path, is_deleted: bool
) -> None:
    put(s3, "replaced.jsonl", OLD)
    source = open_source(on_s3(s3, "s3://acme/replaced.jsonl"), NOWHERE)
    files = fetch_data_files(source, tmp_path, ignore_progress)
    if is_deleted:
        client(s3).rm_file("acme/replaced.jsonl")
    else:
        put(s3, "replaced.jsonl", NEW)
    assert describe_source(source, files).version is None
