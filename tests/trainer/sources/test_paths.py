"""Addresses and listings whose paths lead elsewhere, or to one place twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources import Address, Credentials, open_source
from finetune_trainer.sources.snapshot import open_snapshot

from tests.trainer.servers import Hub, Web, running_bucket
from tests.trainer.source_files import NOWHERE, ROWS, failure, ignore_progress, paths


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """The claim `data`, and one of another user that is mounted too."""
    for claim in ("data", "other"):
        folder = tmp_path / "pvc" / claim / "set"
        folder.mkdir(parents=True)
        (folder / "rows.jsonl").write_bytes(ROWS)
    return tmp_path / "pvc"


@pytest.mark.parametrize(
    "path",
    [
        "%2e%2e/other/set",
        "%2E%2E/other/set",
        "..%2fother/set",
        "%2e%2e%2fother%2fset",
        "set/%2e%2e/%2e%2e/other/set",
        "set/rows.jsonl/../../../other/set",
        "%00/set",
    ],
)
def test_no_spelling_of_two_dots_leaves_a_claim(volumes: Path, path: str) -> None:
    refusal = failure(Address("dataset", f"pvc://data/{path}"), volumes).failure
    assert refusal.reason in ("PathEscape", "DatasetNotFound")


def test_a_percent_is_decoded_once(volumes: Path) -> None:
    refusal = failure(Address("dataset", "pvc://data/%252e%252e/other/set"), volumes).failure
    assert refusal.reason == "DatasetNotFound"


@pytest.mark.parametrize("path", ["set//rows.jsonl", "//set/rows.jsonl", "./set/./rows.jsonl"])
def test_empty_parts_of_a_path_in_a_claim_mean_nothing(volumes: Path, path: str) -> None:
    source = open_source(Address("dataset", f"pvc://data/{path}"), volumes)
    assert paths(source) == ["rows.jsonl"]


@pytest.mark.parametrize("path", ["org/..", "../org/name", "org/name/../../other"])
def test_no_repository_has_dots_for_a_name(hub: Hub, path: str) -> None:
    refusal = failure(Address("model", f"hf://{path}")).failure
    assert refusal.reason in ("PathEscape", "BadAddress")


@pytest.mark.parametrize("path", ["%2e%2e/x.jsonl", "a/%2e%2e/%2e%2e/x.jsonl"])
def test_an_encoded_path_of_a_data_set_stays_in_its_repository(hub: Hub, path: str) -> None:
    hub.repositories["datasets/acme/rows"] = hub.repositories["acme/tiny"]
    secrets = Credentials({"HF_ENDPOINT": hub.url})
    address = Address("dataset", f"hf://datasets/acme/rows/{path}", None, secrets)
    assert failure(address).failure.reason == "PathEscape"


@pytest.mark.parametrize("name", ["..%2f..%2frows.jsonl", "%2e%2e%2frows.jsonl", "a%0ab.jsonl"])
def test_the_name_of_a_download_is_one_file_in_its_folder(
    web: Web, tmp_path: Path, name: str
) -> None:
    web.files = dict.fromkeys(("../../rows.jsonl", "../rows.jsonl", "a\nb.jsonl"), ROWS)
    source = open_source(Address("dataset", f"{web.url}/{name}"), NOWHERE)
    folder = tmp_path / "deep" / "folder"
    source.fetch(source.files[0], folder)
    assert [path.parent for path in tmp_path.rglob("*.jsonl")] == [folder]


@pytest.mark.parametrize(
    "key", ["data/../../x.jsonl", "data/a/../../../x.jsonl", "data//../x.jsonl"]
)
def test_an_object_whose_name_leads_out_is_refused(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_bucket({"data/rows.jsonl": ROWS, key: ROWS}) as bucket:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
        assert failure(Address("dataset", "gs://acme/data")).failure.reason == "PathEscape"


def test_two_objects_that_would_be_one_file_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = {"data/a/rows.jsonl": ROWS, "data/a//rows.jsonl": ROWS}
    with running_bucket(objects) as bucket:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
        refusal = failure(Address("dataset", "gs://acme/data")).failure
    assert refusal.reason == "BadAddress"
    assert "a//rows.jsonl" in refusal.message


@pytest.mark.parametrize("name", ["rows.jsonl/more.jsonl", "x" * 251, "x" * 300])
def test_an_object_whose_name_cannot_be_a_file_is_refused_when_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    objects = {"data/rows.jsonl": ROWS, f"data/{name}": ROWS}
    for order in (1, -1):
        with running_bucket(objects) as bucket:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
            source = open_source(Address("dataset", "gs://acme/data"), NOWHERE)
            with pytest.raises(UserError, match="cannot become a file") as caught:
                _ = [source.fetch(file, tmp_path / str(order)) for file in source.files[::order]]
        assert caught.value.failure.reason == "BadAddress"


def test_an_object_that_would_be_the_folder_itself_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running_bucket({"data/.": ROWS, "data/rows.jsonl": ROWS}) as bucket:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
        refusal = failure(Address("dataset", "gs://acme/data")).failure
    assert refusal.reason == "BadAddress"
    assert "would be a folder" in refusal.message


def test_a_model_whose_files_have_names_with_dots_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    objects = {"tiny/config.json": b"{}", "tiny/../../../etc/model.safetensors": b""}
    with running_bucket(objects) as bucket:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
        address = Address("model", "gs://acme/tiny")
        with pytest.raises(Exception, match="leads out of its folder"):
            open_snapshot(address, NOWHERE, tmp_path, "job-1", ignore_progress)
