"""s3:// against a real S3 server, https:// against a web server with TLS, pvc:// on the disk."""

from __future__ import annotations

import base64
import io
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
from finetune_trainer.runtime.errors import RetryableError, StageError, UserError
from finetune_trainer.sources import Address, Credentials, Source, open_source, take_credentials
from finetune_trainer.sources.snapshot import open_snapshot

from hack.testservers.s3 import S3Server, s3_server
from tests.trainer.servers import (
    Bucket,
    Web,
    make_certificate,
    make_service_account,
    running_bucket,
    running_web,
)
from tests.trainer.tiny import tiny_model

NOWHERE = Path("/nonexistent")
ROWS = b'{"prompt": "a", "completion": "b"}\n'


def ignore_progress(message: str, done: int, total: int | None) -> None:
    """Ignore the progress."""


def failure(
    address: Address, volumes: Path = NOWHERE, kind: type[StageError] = UserError
) -> StageError:
    with pytest.raises(kind) as caught:
        open_source(address, volumes)
    return caught.value


def paths(source: Source) -> list[str]:
    return [file.path for file in source.files]


@pytest.fixture(scope="module")
def s3(tiny_model_folder: Path) -> Iterator[S3Server]:
    with s3_server() as server:
        client = s3fs.S3FileSystem(
            key=server.access_key,
            secret=server.secret_key,
            endpoint_url=server.url,
            skip_instance_cache=True,
        )
        client.mkdir("acme")
        client.pipe_file("acme/data/train.jsonl", ROWS * 3)
        client.pipe_file("acme/data/more/b.jsonl", ROWS)
        client.pipe_file("acme/data2/other.jsonl", ROWS)
        client.put(f"{tiny_model_folder}/", "acme/models/tiny/", recursive=True)
        yield server


def on_s3(server: S3Server, uri: str, kind: str = "dataset", **secrets: str) -> Address:
    values = {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        **secrets,
    }
    assert kind in ("model", "dataset")
    return Address(kind, uri, None, Credentials(values), "dataset.train[0]")  # type: ignore[arg-type]


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
    client = s3fs.S3FileSystem(
        key=s3.access_key, secret=s3.secret_key, endpoint_url=s3.url, skip_instance_cache=True
    )
    seen = set()
    for content in (b"one", b"two"):
        client.pipe_file("acme/changing.jsonl", content)
        seen.add(open_source(on_s3(s3, "s3://acme/changing.jsonl"), NOWHERE).revision)
    assert len(seen) == 2


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


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def web(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with running_web({"rows.jsonl": ROWS}, certificate) as running:
        yield running


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


def tar_of(folder: Path, prefix: str = "tiny/") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, prefix + path.name)
    return packed.getvalue()


def zip_of(folder: Path) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return packed.getvalue()


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_https_model_archive_is_unpacked_and_cached(
    web: Web, tmp_path: Path, tiny_model_folder: Path, kind: str
) -> None:
    packed = tar_of(tiny_model_folder) if kind == "tar.gz" else zip_of(tiny_model_folder)
    web.files[f"tiny.{kind}"] = packed
    address = Address("model", f"{web.url}/tiny.{kind}")
    for uid in ("job-1", "job-2"):
        snapshot = open_snapshot(address, NOWHERE, tmp_path, uid, ignore_progress)
        snapshot.fetch_small_files()
        folder = snapshot.fetch_all_files()
    assert {path.name for path in folder.iterdir()} - {".finetune.json"} == {
        path.name for path in tiny_model_folder.iterdir()
    }
    assert web.fetched == [f"tiny.{kind}"]


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "evil",
    [
        member("../config.json"),
        member("/etc/config.json"),
        member("config.json", tarfile.SYMTYPE, "/etc/passwd"),
        member("config.json", tarfile.LNKTYPE, "../../secret"),
        member("config.json", tarfile.CHRTYPE),
    ],
    ids=["parent", "absolute", "symlink", "hardlink", "device"],
)
def test_unsafe_archive_is_refused_and_writes_nothing(
    web: Web, tmp_path: Path, evil: tarfile.TarInfo
) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(evil)
    web.files["evil.tar.gz"] = packed.getvalue()
    address = Address("model", f"{web.url}/evil.tar.gz")
    snapshot = open_snapshot(address, NOWHERE, tmp_path / "cache", "job-1", ignore_progress)
    with pytest.raises(UserError) as caught:
        snapshot.fetch_small_files()
    assert caught.value.failure.reason == "UnsafeArchive"
    assert not list(tmp_path.rglob("config.json"))


@pytest.mark.parametrize(
    ("content", "reason"), [(b"junk", "BrokenArchive"), (b"", "BrokenArchive")]
)
def test_broken_archive_is_reported(web: Web, tmp_path: Path, content: bytes, reason: str) -> None:
    web.files["broken.tar.gz"] = content
    address = Address("model", f"{web.url}/broken.tar.gz")
    snapshot = open_snapshot(address, NOWHERE, tmp_path, "job-1", ignore_progress)
    with pytest.raises(UserError) as caught:
        snapshot.fetch_small_files()
    assert caught.value.failure.reason == reason


def test_truncated_archive_is_reported(web: Web, tmp_path: Path, tiny_model_folder: Path) -> None:
    web.files["cut.tar.gz"] = tar_of(tiny_model_folder)[:200_000]
    address = Address("model", f"{web.url}/cut.tar.gz")
    snapshot = open_snapshot(address, NOWHERE, tmp_path, "job-1", ignore_progress)
    with pytest.raises(UserError) as caught:
        snapshot.fetch_small_files()
    assert caught.value.failure.reason == "BrokenArchive"


@pytest.fixture
def claim(tmp_path: Path) -> Path:
    folder = tmp_path / "pvc" / "data"
    (folder / "set" / "more").mkdir(parents=True)
    (folder / "set" / "a.jsonl").write_bytes(ROWS)
    (folder / "set" / "more" / "b.jsonl").write_bytes(ROWS)
    return folder


def test_claim_data_is_read_in_place(claim: Path, tmp_path: Path) -> None:
    source = open_source(Address("dataset", "pvc://data/set"), claim.parent)
    assert paths(source) == ["a.jsonl", "more/b.jsonl"]
    assert source.fetch(source.files[0], tmp_path / "unused") == claim / "set" / "a.jsonl"
    assert not (tmp_path / "unused").exists()


def test_claim_file_is_found(claim: Path) -> None:
    source = open_source(Address("dataset", "pvc://data/set/a.jsonl"), claim.parent)
    assert paths(source) == ["a.jsonl"]


def test_links_inside_a_claim_are_followed(claim: Path) -> None:
    (claim / "set" / "link.jsonl").symlink_to("more/b.jsonl")
    source = open_source(Address("dataset", "pvc://data/set/link.jsonl"), claim.parent)
    assert source.files[0].size == len(ROWS)


@pytest.mark.parametrize("target", ["/etc/passwd", "../../other/secret.jsonl"])
def test_links_that_leave_the_claim_are_refused(claim: Path, target: str) -> None:
    (claim.parent / "other").mkdir()
    (claim.parent / "other" / "secret.jsonl").write_bytes(ROWS)
    (claim / "set" / "link.jsonl").symlink_to(target)
    for uri in ("pvc://data/set", "pvc://data/set/link.jsonl"):
        assert failure(Address("dataset", uri), claim.parent).failure.reason == "PathEscape"


@pytest.mark.parametrize("uri", ["pvc://data/../other", "pvc://../data", "pvc://data/set/../../x"])
def test_claim_address_with_dots_is_refused(claim: Path, uri: str) -> None:
    assert failure(Address("dataset", uri), claim.parent).failure.reason == "PathEscape"


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("pvc://data/none", "no such path"),
        ("pvc://absent/x", "not mounted"),
        ("pvc://data/empty", "is empty"),
    ],
)
def test_claim_path_that_does_not_exist_is_not_found(claim: Path, uri: str, why: str) -> None:
    (claim / "empty").mkdir()
    refusal = failure(Address("model", uri), claim.parent).failure
    assert refusal.reason == "ModelNotFound"
    assert why in refusal.message


def test_model_in_a_claim_is_copied_into_the_cache(tmp_path: Path) -> None:
    tiny_model(tmp_path / "pvc" / "models" / "tiny")
    address = Address("model", "pvc://models/tiny")
    snapshot = open_snapshot(
        address, tmp_path / "pvc", tmp_path / "cache", "job-1", ignore_progress
    )
    snapshot.fetch_small_files()
    assert (snapshot.fetch_all_files() / "model.safetensors").is_file()


def test_credentials_leave_the_environment_and_no_repr_shows_them() -> None:
    environ = {
        "FINETUNE_SECRET_MODEL_HF_TOKEN": "hf_secret\n",
        "FINETUNE_SECRET_MODEL_unrelated": "x",
        "FINETUNE_SECRET_DATA_token": "other",
        "PATH": os.defpath,
    }
    model = take_credentials(environ, "FINETUNE_SECRET_MODEL_")
    data = take_credentials(environ, "FINETUNE_SECRET_DATA_")
    assert list(environ) == ["PATH"]
    assert (model.get("HF_TOKEN"), data.get("HF_TOKEN")) == ("hf_secret", "other")
    assert "secret" not in repr(model)
    assert "secret" not in repr(Address("model", "hf://a/b", None, model))
