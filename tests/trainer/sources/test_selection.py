"""Patterns, splits and configurations choose files of a listing."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.failure import Failure
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.dataset_card import CardConfig, CardError, parse_configs
from finetune_trainer.sources.row_files import find_row_files, format_suffix, is_unreadable
from finetune_trainer.sources.selection import (
    Declared,
    Selection,
    match_pattern,
    select_files,
    visible_paths,
)
from finetune_trainer.sources.shards import check_shards

PATHS = ["a.jsonl", "data/train-1.jsonl", "data/x/train-2.jsonl", ".cache/b.jsonl", "_old/c.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("*", ["a.jsonl"]),
        ("*.jsonl", ["a.jsonl"]),
        ("a.jsonl", ["a.jsonl"]),
        ("/a.jsonl", ["a.jsonl"]),
        ("./a.jsonl", ["a.jsonl"]),
        ("**", ["a.jsonl", "data/train-1.jsonl", "data/x/train-2.jsonl"]),
        ("**/train-*", ["data/train-1.jsonl", "data/x/train-2.jsonl"]),
        ("data/*", ["data/train-1.jsonl"]),
        ("data/**/train-[0-9].jsonl", ["data/train-1.jsonl", "data/x/train-2.jsonl"]),
        ("data/train-[!1].jsonl", []),
        ("data/?/*", ["data/x/train-2.jsonl"]),
        ("_old/*", ["_old/c.jsonl"]),
        (".cache/b.jsonl", [".cache/b.jsonl"]),
        ("A.jsonl", []),
        ("[", []),
        ("../*", []),
    ],
)
def test_patterns_match_as_those_of_fsspec(pattern: str, matched: list[str]) -> None:
    assert match_pattern(PATHS, pattern) == matched


def refused(paths: list[str], selection: Selection, declared: Declared | None = None) -> Failure:
    with pytest.raises(UserError) as caught:
        select_files(paths, selection, declared or Declared(), "pvc://data")
    assert caught.value.failure.remedy
    return caught.value.failure


def test_hidden_files_are_left_out_by_default() -> None:
    assert select_files(PATHS, Selection(), Declared(), "x") == [
        "data/train-1.jsonl",
        "data/x/train-2.jsonl",
    ]


def test_a_pattern_and_a_split_both_hold() -> None:
    paths = ["en/train.jsonl", "en/test.jsonl", "de/train.jsonl"]
    selection = Selection(files="en/*", split="train")
    assert select_files(paths, selection, Declared(), "x") == ["en/train.jsonl"]
    refusal = refused(paths, Selection(files="en/*", split="dev"))
    assert "its splits are: test, train" in refusal.message


def test_two_stars_inside_a_name_are_refused() -> None:
    refusal = refused(["a.jsonl"], Selection(files="data/train**"))
    assert refusal.reason == "NoMatchingFiles"
    assert "'data/train**' has ** as a part of a name" in refusal.message


def test_a_long_listing_is_cut_in_the_message() -> None:
    refusal = refused([f"{n:02}.jsonl" for n in range(30)], Selection(files="x"))
    assert "04.jsonl and 25 more" in refusal.message


def test_the_default_configuration_is_taken() -> None:
    paths = ["a/rows.jsonl", "b/rows.jsonl"]
    configs = [CardConfig("a", folder="a"), CardConfig("default", folder="b")]
    assert select_files(paths, Selection(), Declared(configs), "x") == ["b/rows.jsonl"]
    marked = [CardConfig("a", is_default=True, folder="a"), CardConfig("b", folder="b")]
    assert select_files(paths, Selection(), Declared(marked), "x") == ["a/rows.jsonl"]
    assert select_files(paths, Selection(config="b"), Declared(marked), "x") == ["b/rows.jsonl"]
    assert select_files(paths, Selection(), Declared(configs[:1]), "x") == ["a/rows.jsonl"]


def test_a_configuration_that_is_not_declared_is_refused() -> None:
    assert "declares none" in refused(["a.jsonl"], Selection(config="en")).message
    declared = Declared([CardConfig("en"), CardConfig("de")])
    assert "declares en, de" in refused(["a.jsonl"], Selection(config="fr"), declared).message


def test_every_pattern_of_a_declared_split_must_match() -> None:
    patterns = {"train": ("a.jsonl", "b-*.jsonl"), "test": ("gone.jsonl",)}
    declared = Declared([CardConfig("c", folder="d", patterns=patterns)])
    paths = ["d/a.jsonl", "d/b-1.jsonl"]
    assert select_files(paths, Selection(), declared, "x") == paths
    refusal = refused(["d/a.jsonl", "d/c.jsonl"], Selection(), declared)
    assert (refusal.reason, refusal.file) == ("NoMatchingFiles", "README.md")
    assert "'b-*.jsonl'" in refusal.message
    assert "dataset.train[0].files" in str(refusal.remedy)


def test_names_with_unclear_splits_are_refused() -> None:
    for split in (None, "train"):
        refusal = refused(["rows.jsonl", "mytest.jsonl"], Selection(split=split))
        assert (refusal.reason, refusal.file) == ("NoMatchingFiles", "mytest.jsonl")
        assert "mytest.jsonl" in refusal.message
        assert "dataset.train[0].files" in str(refusal.remedy)
        assert "dataset.train[0].split" in str(refusal.remedy)
    chosen = select_files(["rows.jsonl", "mytest.jsonl"], Selection(files="r*"), Declared(), "x")
    assert chosen == ["rows.jsonl"]


def test_a_split_that_is_not_there_is_refused_with_a_file_of_the_others() -> None:
    refusal = refused(["rows.jsonl", "holdout.jsonl"], Selection())
    assert "its splits are: holdout, with files such as holdout.jsonl" in refusal.message


@pytest.mark.parametrize(
    ("paths", "missing"),
    [
        (["data/train-00000-of-00003.parquet"], "data/train-00001-of-00003.parquet and 1 more"),
        (["train-00000-of-00003.csv", "train-00002-of-00003.csv"], "train-00001-of-00003.csv"),
        (["train-00001-of-00002-1a2b.jsonl"], "train-00000-of-00002"),
        (["c4.00000-of-01024.json.gz"], "c4.00001-of-01024.json.gz and 1022 more"),
        (["rows-1-of-3.jsonl", "rows-3-of-3.jsonl"], "rows-2-of-3.jsonl"),
        (["rows_0_of_2.jsonl", "b.jsonl"], "rows_1_of_2.jsonl"),
        (["a/00000-of-00002.jsonl", "b/00001-of-00002.jsonl"], "a/00001-of-00002.jsonl"),
    ],
)
def test_a_shard_that_is_missing_is_named(paths: list[str], missing: str) -> None:
    with pytest.raises(UserError) as caught:
        check_shards(paths, paths, Selection(), "pvc://data")
    refusal = caught.value.failure
    assert refusal.reason == "NoMatchingFiles"
    assert f"lacks {missing}" in refusal.message
    assert "dataset.train[0].files" in str(refusal.remedy)


@pytest.mark.parametrize(
    "paths",
    [
        ["train-00000-of-00001.jsonl", "train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"],
        ["train-00000-of-00001-1a2b.parquet", "train-00000-of-00001-3c4d.parquet"],
        ["train-00000-of-00001.csv", "train-00000-of-00001.jsonl"],
    ],
)
def test_a_shard_that_is_there_twice_is_refused(paths: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        check_shards(paths, paths, Selection(), "pvc://data")
    assert f"{paths[0]} and {paths[1]}" in caught.value.failure.message
    check_shards(paths[1:], paths, Selection(), "pvc://data")


@pytest.mark.parametrize(
    "paths",
    [
        ["data/train-00000-of-00002-1a.parquet", "data/train-00001-of-00002-2b.parquet"],
        ["rows-1-of-2.jsonl", "rows-2-of-2.jsonl"],
        ["part-0.jsonl", "best-of-3.jsonl", "1-of-a-kind.jsonl"],
    ],
)
def test_complete_shards_are_used(paths: list[str]) -> None:
    check_shards(paths, paths, Selection(), "pvc://data")


def test_shards_that_a_card_leaves_out_are_not_missing() -> None:
    paths = ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test-00001-of-2.jsonl"]
    check_shards(paths[:1], paths, Selection(), "pvc://data")


@pytest.mark.parametrize(
    ("data_files", "patterns"),
    [
        ("a-*.jsonl", {"train": ("a-*.jsonl",)}),
        (["a", "./b"], {"train": ("a", "b")}),
        ([{"split": "test", "path": "a"}], {"test": ("a",)}),
        ([{"split": "x", "path": ["a", "b"]}, {"split": "x", "path": "c"}], {"x": ("a", "b", "c")}),
        ({"train": "a", "test": ["b"]}, {"train": ("a",), "test": ("b",)}),
    ],
)
def test_the_files_of_a_card_are_declared_in_several_ways(
    data_files: Any, patterns: dict[str, tuple[str, ...]]
) -> None:
    (config,) = parse_configs({"configs": [{"config_name": "c", "data_files": data_files}]})
    assert config.patterns == patterns


@pytest.mark.parametrize(
    "configs",
    [
        "english",
        ["english"],
        [{"data_files": 7}],
        [{"data_files": []}],
        [{"data_files": [{"split": "train"}]}],
        [{"data_files": "data/train**"}],
        [{"data_files": [{"split": "train", "path": "a"}, "b"]}],
        [{"data_dir": ["a"]}],
        [{"config_name": "a"}, {"config_name": "a"}],
        [{"config_name": "a", "default": True}, {"config_name": "b", "default": True}],
    ],
)
def test_a_malformed_card_is_an_error(configs: Any) -> None:
    with pytest.raises(CardError):
        parse_configs({"configs": configs})


def test_a_card_without_configurations_declares_none() -> None:
    assert parse_configs({"license": "mit"}) == []


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.jsonl", ".jsonl"),
        ("A.NDJSON.GZ", ".jsonl"),
        ("a.csv.zst", ".csv"),
        ("a.tsv", ".tsv"),
        ("a.parquet", ".parquet"),
        ("a.jsonlines", ".jsonl"),
        ("a.jsonlines.gz", ".jsonl"),
        ("a.pq", ".parquet"),
        ("a.PARQ", ".parquet"),
        ("a.jsonl.zstd", ".jsonl"),
        ("a.csv.gzip", ".csv"),
        ("README.md", ""),
        ("jsonl", ""),
    ],
)
def test_the_suffix_decides_how_a_file_is_read(name: str, suffix: str) -> None:
    assert format_suffix(name) == suffix
    assert not is_unreadable(name)


UNREADABLE = """
    a.parquet.gz a.pq.zstd a.jsonl.bz2 a.csv.xz a.xlsx a.XLSM a.zip a.tar a.tar.gz a.tgz a.7z a.rar
    a.gz part-00000.zst a.pkl a.pickle a.tfrecord a.tfrecords a.sqlite a.sqlite3 a.db a.h5 a.npz
    a.jsonl.part a.jsonl.crdownload a.csv.old a.json.1 a.jsonl~ b.partial part-00000 d/000000_0
    part-r-00003 train-00000-of-00002 part-00000-1a2b-c000 a.jsonl/part-0 a.csv/rows d.PARQUET/x
    a.jsonl.gz/part-0.dat a.jsonl-00000-of-00002
"""
NO_ROWS = """
    README LICENSE Makefile notes.md load.py train.sh image.png a.jsonl.sha256 a.jsonl.dvc
    a.csv.license a.jsonl/_SUCCESS a.jsonl/.part-0.crc part.md dataset.yaml Thumbs.db SHA256SUMS
"""


@pytest.mark.parametrize("name", UNREADABLE.split())
def test_rows_that_are_not_read_are_found(name: str) -> None:
    assert is_unreadable(name)
    assert find_row_files([name], with_documents=False) == [name]


@pytest.mark.parametrize("name", NO_ROWS.split())
def test_files_without_rows_are_not_found(name: str) -> None:
    assert visible_paths(find_row_files([name], with_documents=False)) == []


def test_what_datasets_writes_next_to_its_rows_is_not_rows() -> None:
    saved = ["d/data-00000-of-00001.arrow", "d/state.json", "d/cache-1.arrow", "dataset_info.json"]
    assert find_row_files(saved, with_documents=False) == saved[:1]
    assert find_row_files(["state.json"], with_documents=False) == ["state.json"]
    assert find_row_files(["a.jsonl", "config.json"], with_documents=False) == ["a.jsonl"]
    documents = ["AUTHORS.txt", "CHANGELOG.txt", "CITATION.txt", "CONTRIBUTING.txt", "NOTICE.txt"]
    assert find_row_files(documents, with_documents=False) == []
    texts = ["README.txt", "d/LICENSE.txt", "readmes.txt", "authors-letters.txt", "a.txt"]
    assert find_row_files(texts, with_documents=False) == texts[2:]
    assert find_row_files([*texts, "lost+found/a.txt"], with_documents=True) == texts
