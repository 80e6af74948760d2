"""pvc:// addresses on the disk: data is read in place, and no path leaves its claim."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources import Address, open_source
from finetune_trainer.sources.dataset_files import fetch_data_files
from finetune_trainer.sources.snapshot import open_snapshot

from tests.trainer.source_files import ROWS, failure, ignore_progress, paths
from tests.trainer.tiny import tiny_model


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


def test_linked_folders_are_followed_once(claim: Path) -> None:
    (claim / "shared").mkdir()
    (claim / "shared" / "c.jsonl").write_bytes(ROWS)
    (claim / "shared" / "back").symlink_to(claim / "set")
    (claim / "shared" / "itself").symlink_to(claim / "shared")
    (claim / "set" / "linked").symlink_to("../shared")
    (claim / "set" / "again").symlink_to("more")
    (claim / "set" / "round").symlink_to("..")
    source = open_source(Address("dataset", "pvc://data/set"), claim.parent)
    assert paths(source) == ["a.jsonl", "linked/c.jsonl", "more/b.jsonl"]


def test_a_linked_folder_outside_the_claim_is_refused(claim: Path) -> None:
    (claim / "set" / "linked").symlink_to("/etc")
    assert (
        failure(Address("dataset", "pvc://data/set"), claim.parent).failure.reason == "PathEscape"
    )


def test_a_link_to_a_file_that_is_not_there_is_refused(claim: Path) -> None:
    (claim / "set" / "notes").symlink_to("gone")
    assert open_source(Address("dataset", "pvc://data/set"), claim.parent).files
    (claim / "set" / "c.jsonl").symlink_to("../.git/annex/objects/c")
    refusal = failure(Address("dataset", "pvc://data/set"), claim.parent).failure
    assert (refusal.reason, refusal.file) == ("BrokenFile", "c.jsonl")
    assert "dvc pull" in (refusal.remedy or "")


@pytest.mark.parametrize("name", ["README.md", "dataset_dict.json", "part-00000", "b.zip"])
def test_a_link_to_a_declaration_that_is_not_there_is_refused(claim: Path, name: str) -> None:
    (claim / "set" / name).symlink_to("../gone")
    refusal = failure(Address("dataset", "pvc://data/set"), claim.parent).failure
    assert (refusal.reason, refusal.file) == ("BrokenFile", name)


def test_links_in_a_circle_are_not_found(claim: Path) -> None:
    (claim / "one.jsonl").symlink_to("two.jsonl")
    (claim / "two.jsonl").symlink_to("one.jsonl")
    refusal = failure(Address("dataset", "pvc://data/one.jsonl"), claim.parent).failure
    assert refusal.reason == "DatasetNotFound"


def test_a_name_that_is_not_utf8_is_refused_only_if_it_is_read(claim: Path, tmp_path: Path) -> None:
    (claim / "set" / os.fsdecode(b"t\xf6ne.md")).write_bytes(b"notes")
    source = open_source(Address("dataset", "pvc://data/set"), claim.parent)
    assert len(fetch_data_files(source, tmp_path / "unused", ignore_progress)) == 2
    (claim / "set" / os.fsdecode(b"t\xf6ne.jsonl")).write_bytes(ROWS)
    source = open_source(Address("dataset", "pvc://data/set"), claim.parent)
    with pytest.raises(UserError) as caught:
        fetch_data_files(source, tmp_path / "unused", ignore_progress)
    assert caught.value.failure.reason == "NotUTF8"
    assert "ne.jsonl" in caught.value.failure.message


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


def test_adapter_that_does_not_exist_is_not_found_as_an_adapter(claim: Path) -> None:
    address = Address("model", "pvc://data/none", spec_field="model.adapter")
    refusal = failure(address, claim.parent).failure
    assert "no adapter at pvc://data/none" in refusal.message
    assert "model.adapter.uri" in (refusal.remedy or "")


def test_model_in_a_claim_is_copied_into_the_cache(tmp_path: Path) -> None:
    tiny_model(tmp_path / "pvc" / "models" / "tiny")
    address = Address("model", "pvc://models/tiny")
    snapshot = open_snapshot(
        address, tmp_path / "pvc", tmp_path / "cache", "job-1", ignore_progress
    )
    snapshot.fetch_small_files()
    assert (snapshot.fetch_all_files() / "model.safetensors").is_file()
