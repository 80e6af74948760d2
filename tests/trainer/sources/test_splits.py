"""Splits by the names of files and folders, as the hub finds them."""

from __future__ import annotations

import pytest
from finetune_trainer.sources.splits import detect_splits


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train.jsonl", "train"),
        ("training_data.csv", "train"),
        ("my-train-v2.jsonl.gz", "train"),
        ("train0.jsonl", "train"),
        ("en.val.jsonl", "validation"),
        ("valid.jsonl", "validation"),
        ("dev 1.jsonl", "validation"),
        ("Validation.jsonl", "validation"),
        ("eval.jsonl", "test"),
        ("testing.jsonl", "test"),
        ("evaluation_set.jsonl", "test"),
        ("train/rows.jsonl", "train"),
        ("a/b/dev-set/rows.jsonl", "validation"),
        ("TEST/rows.jsonl", "test"),
        ("split=train/part-0.parquet", "train"),
        ("test+a.jsonl", "test"),
        ("data (test).jsonl", "test"),
        ("[dev] rows.jsonl", "validation"),
        ("holdout.jsonl", "holdout"),
        ("rows-held_out.jsonl", "holdout"),
        ("data/prefs-00000-of-00002.parquet", "prefs"),
        ("data/train_sft-00000-of-00001-0a1b2c.parquet", "train_sft"),
    ],
)
def test_names_with_the_word_of_a_split(path: str, split: str) -> None:
    splits = detect_splits([path, "other.jsonl"])
    assert splits.are_named
    assert splits.files == {split: [path]}


@pytest.mark.parametrize(
    "paths",
    [
        ["a.jsonl", "rows.jsonl"],
        ["part-00000-of-00002.parquet", "part-00001-of-00002.parquet"],
        ["latest-1.jsonl", "latest-2.jsonl"],
        ["cavalry.txt", "device.txt", "rows.txt", "values.txt"],
    ],
)
def test_names_without_one_are_all_train(paths: list[str]) -> None:
    splits = detect_splits(paths)
    assert not splits.are_named
    assert splits.files == {"train": paths}
    assert not splits.unclear


@pytest.mark.parametrize(
    "path",
    [
        *("mytest.jsonl", "testset.jsonl", "testrows/a.jsonl", "dataTest.jsonl", "test集.jsonl"),
        *("traindump.jsonl", "mydev.jsonl", "devs.jsonl", "valset.jsonl"),
        *("val集.jsonl", "validate.jsonl", "crossvalidation.jsonl", "evals.jsonl", "mteval.csv"),
        "holdouts.jsonl",
    ],
)
def test_a_word_inside_another_word_of_some_names_is_unclear(path: str) -> None:
    splits = detect_splits([path, "b.jsonl"])
    assert (splits.are_named, splits.unclear) == (False, (path,))
    assert not detect_splits([path]).unclear
    assert not detect_splits(["train.jsonl", path]).unclear


def test_different_words_inside_all_names_are_unclear() -> None:
    names = ["dataTest.jsonl", "dataTrain.jsonl"]
    assert detect_splits(names).unclear == tuple(names)


def test_folders_decide_before_file_names_and_shards_before_folders() -> None:
    assert detect_splits(["train/a.jsonl", "b-test.jsonl"]).files == {"train": ["train/a.jsonl"]}
    shards = ["data/train-00000-of-00001.jsonl", "test/a.jsonl"]
    assert detect_splits(shards).files == {"train": shards[:1]}


@pytest.mark.parametrize(
    "path",
    [
        "train-test.jsonl",
        "train/test.jsonl",
        "train_test_split/rows.jsonl",
        "dev/train/a.csv",
        "train/holdout.jsonl",
    ],
)
def test_a_name_of_two_splits_is_of_none(path: str) -> None:
    splits = detect_splits([path])
    assert splits.files == {}
    assert set(splits.ambiguous) == {path}


def test_no_files_have_no_splits() -> None:
    assert detect_splits([]).files == {}
