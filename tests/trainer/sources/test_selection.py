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
)

PATHS = ["a.jsonl", "data/train-1.jsonl", "data/x/train-2.jsonl", ".cache/b.jsonl", "_old/c.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("*", ["a.jsonl"]),
        ("*.jsonl", ["a.jsonl"]),
        ("a.jsonl", ["a.jsonl"]),
        ("/a.jsonl", ["a.jsonl"]),
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


def test_two_stars_inside_a_name_are_no_pattern() -> None:
    refusal = refused(["a.jsonl"], Selection(files="data/train**"))
    assert refusal.reason == "NoMatchingFiles"
    assert "'data/train**' is no pattern" in refusal.message


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
        ("a.parquet.gz", ""),
        ("a.jsonl.bz2", ""),
        ("README.md", ""),
        ("jsonl", ""),
    ],
)
def test_the_suffix_says_how_a_file_is_read(name: str, suffix: str) -> None:
    assert format_suffix(name) == suffix
    assert is_unreadable(name) == name.endswith((".parquet.gz", ".bz2"))


def test_what_datasets_writes_beside_its_rows_is_not_rows() -> None:
    saved = ["d/data-00000-of-00001.arrow", "d/state.json", "d/cache-1.arrow", "dataset_info.json"]
    assert find_row_files(saved, with_documents=False) == saved[:1]
    assert find_row_files(["state.json"], with_documents=False) == ["state.json"]
    texts = ["README.txt", "LICENSE-data.txt", "readmes.txt", "lost+found/a.txt", "a.txt"]
    assert find_row_files(texts, with_documents=False) == ["readmes.txt", "a.txt"]
    assert find_row_files(texts, with_documents=True) == [*texts[:3], "a.txt"]
