"""pvc:// addresses on the disk: data is read in place, and no path leaves its claim."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetune_trainer.sources import Address, open_source
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
