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
        ("trainset.jsonl", "train"),
        ("TRAINset.jsonl", "train"),
        ("testdata/rows.jsonl", "test"),
        ("valset.csv", "validation"),
        ("dataTrain.jsonl", "train"),
        ("dataTest/rows.jsonl", "test"),
        ("QATestSet.jsonl", "test"),
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
    "path",
    [
        "rows.jsonl",
        "trainer.jsonl",
        "constrain.jsonl",
        "contest/rows.jsonl",
        "latest.jsonl",
        "device.jsonl",
        "pretrain.jsonl",
        "retrieval.jsonl",
        "part-00000-of-00002.parquet",
    ],
)
def test_names_without_one_are_all_train(path: str) -> None:
    splits = detect_splits([path, "b.jsonl"])
    assert not splits.are_named
    assert splits.files == {"train": sorted([path, "b.jsonl"])}
    assert not splits.unclear


@pytest.mark.parametrize(
    "path",
    [
        "mytest.jsonl",
        "traindump.jsonl",
        "testrows/a.jsonl",
        "squadtest-1.jsonl",
        "evals.jsonl",
        "mteval.csv",
        "mydev.jsonl",
        "devs.jsonl",
        "crossvalidation.jsonl",
        "holdouts.jsonl",
        "test集.jsonl",
        "val集.jsonl",
        "validate.jsonl",
    ],
)
def test_a_split_that_only_one_of_the_names_seems_to_have_is_unclear(path: str) -> None:
    splits = detect_splits([path, "b.jsonl"])
    assert (splits.are_named, splits.unclear) == (False, (path,))
    assert not detect_splits([path]).unclear
    assert not detect_splits(["train.jsonl", path]).unclear


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
        "trainTest.jsonl",
        "train/testset.jsonl",
        "train_devset.jsonl",
        "train_evalData.jsonl",
        "train-myTest.jsonl",
    ],
)
def test_a_name_of_two_splits_is_of_none(path: str) -> None:
    splits = detect_splits([path])
    assert splits.files == {}
    assert set(splits.ambiguous) == {path}


def test_all_files_of_a_split_belong_to_it_however_its_word_is_written() -> None:
    train = ["extraTrain.jsonl", "train.jsonl", "trainData-b.jsonl", "trainset2.jsonl"]
    assert detect_splits([*train, "SQuAD-devset.json"]).files["train"] == train
    tests = ["testset-1.jsonl", "testset-2.jsonl"]
    assert detect_splits(tests).files == {"test": tests}


def test_no_files_have_no_splits() -> None:
    assert detect_splits([]).files == {}
