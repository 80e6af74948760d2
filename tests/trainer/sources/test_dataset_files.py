"""The files of a folder of a claim that a job reads, and the errors where that is not clear."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pytest
from finetune_api.failure import Failure
from finetune_trainer.data.read_records import read_samples
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources import Address, open_source
from finetune_trainer.sources.dataset_files import (
    DataFile,
    check_digest,
    describe_source,
    fetch_data_files,
)
from finetune_trainer.sources.selection import Selection

from tests.trainer.rows import job
from tests.trainer.source_files import ROWS, ignore_progress

SET = "pvc://data/set"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of the data set."""
    folder = tmp_path / "pvc" / "data" / "set"
    folder.mkdir(parents=True)
    return folder


def write(root: Path, *names: str, content: bytes | str = ROWS) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def fetch(root: Path, uri: str = SET, **selection: Any) -> list[DataFile]:
    source = open_source(Address("dataset", uri, spec_field="dataset.train[0]"), root.parents[1])
    downloads = root.parents[2] / "downloads"
    return fetch_data_files(source, downloads, ignore_progress, Selection(**selection))


def chosen(root: Path, uri: str = SET, **selection: Any) -> list[str]:
    return [file.name for file in fetch(root, uri, **selection)]


def refusal(root: Path, uri: str = SET, **selection: Any) -> Failure:
    with pytest.raises(UserError) as caught:
        fetch(root, uri, **selection)
    assert caught.value.failure.remedy
    return caught.value.failure


def test_a_split_is_chosen_by_the_job_or_its_default(root: Path) -> None:
    write(root, "train.jsonl", "dev.jsonl", "test.jsonl")
    assert chosen(root) == ["train.jsonl"]
    assert chosen(root, default_split="validation") == ["dev.jsonl"]
    assert chosen(root, split="test") == ["test.jsonl"]
    assert chosen(root, files="*") == ["dev.jsonl", "test.jsonl", "train.jsonl"]
    failure = refusal(root, split="extra")
    assert failure.reason == "NoMatchingFiles"
    assert "its splits are: test, train, validation" in failure.message
    assert "dataset.train[0].split" in (failure.remedy or "")


def test_a_file_of_two_splits_is_refused(root: Path) -> None:
    write(root, "train.jsonl", "train_test.jsonl")
    failure = refusal(root)
    assert (failure.reason, failure.file) == ("NoMatchingFiles", "train_test.jsonl")
    assert chosen(root, files="train.jsonl") == ["train.jsonl"]


def test_many_shards_are_selected_by_a_pattern(root: Path) -> None:
    shards = [f"data/train-{number:05}-of-00020.jsonl" for number in range(20)]
    write(root, *shards, "data/test-00000-of-00001.jsonl")
    assert chosen(root) == shards
    assert chosen(root, files="data/train-0000[0-4]-*") == shards[:5]
    assert chosen(root, files="**", split="test") == ["data/test-00000-of-00001.jsonl"]


def test_a_missing_shard_is_refused_unless_files_selects_the_others(root: Path) -> None:
    names = ["data/train-00000-of-00003.jsonl", "data/train-00002-of-00003.jsonl"]
    write(root, *names)
    failure = refusal(root)
    assert (failure.reason, failure.file) == ("NoMatchingFiles", names[0])
    assert "data/train-00001-of-00003.jsonl" in failure.message
    assert chosen(root, files="data/*") == names
    assert chosen(root, f"{SET}/{names[0]}") == [names[0].rpartition("/")[2]]


def test_a_pattern_in_the_address_is_refused_with_the_remedy(root: Path) -> None:
    write(root, "a.jsonl")
    failure = refusal(root, f"{SET}/*.jsonl")
    assert failure.reason == "DatasetNotFound"
    assert "dataset.train[0].files" in (failure.remedy or "")


@pytest.mark.parametrize(
    ("folder", "uri"),
    [
        ("My Data", "My Data"),
        ("My Data", "My%20Data"),
        ("My%20Data", "My%20Data"),
        ("c#", "c#"),
        ("c#", "c%23"),
        ("50%off", "50%off"),
        ("töne", "töne"),
        ("töne", "t%C3%B6ne"),
        ("what?", "what?"),
        ("a+b", "a+b"),
    ],
)
def test_names_may_have_any_character(root: Path, folder: str, uri: str) -> None:
    write(root, f"{folder}/more rows.jsonl")
    assert chosen(root, f"{SET}/{uri}") == ["more rows.jsonl"]
    assert chosen(root, f"{SET}/{uri}/more rows.jsonl") == ["more rows.jsonl"]


def test_names_that_cannot_exist_are_not_found(root: Path) -> None:
    for uri in ("pvc://data/My%20Data", f"pvc://data/{'x' * 300}/rows.jsonl"):
        assert refusal(root, uri).reason == "DatasetNotFound"
    for uri in ("pvc://data/%2e%2e/other", "pvc://data/a%00b"):
        assert refusal(root, uri).reason == "PathEscape"


def test_hidden_files_are_read_only_where_they_are_named(root: Path) -> None:
    write(root, ".trash/a.jsonl", "_old/b.jsonl", "lost+found/c.jsonl")
    assert refusal(root).reason == "UnsupportedFormat"
    assert chosen(root, files="_old/*") == ["_old/b.jsonl"]
    assert chosen(root, f"{SET}/_old/b.jsonl") == ["b.jsonl"]


def test_text_files_next_to_other_formats_need_a_pattern(root: Path) -> None:
    write(root, "a.jsonl", "README.txt")
    assert chosen(root) == ["a.jsonl"]
    write(root, "novel.txt")
    failure = refusal(root)
    assert (failure.reason, failure.file) == ("UnsupportedFormat", "novel.txt")
    assert chosen(root, files="*.jsonl") == ["a.jsonl"]
    assert chosen(root, files="*") == ["README.txt", "a.jsonl", "novel.txt"]


@pytest.mark.parametrize("copy", ["train.csv", "train.jsonl.gz", "train.JSON", "train.parquet"])
def test_the_same_rows_in_two_formats_are_refused(root: Path, copy: str) -> None:
    write(root, "train.jsonl", copy, "other/train.csv")
    failure = refusal(root)
    assert failure.reason == "NoMatchingFiles"
    assert {"train.jsonl", copy} <= {*failure.message.replace(",", " ").split()}
    assert chosen(root, files="train.jsonl") == ["train.jsonl"]
    assert len(chosen(root, files="train.*")) == 2


def test_rows_in_a_format_that_is_not_read_are_refused(root: Path) -> None:
    write(root, "a.jsonl", "b.xlsx")
    failure = refusal(root)
    assert (failure.reason, failure.file) == ("UnsupportedFormat", "b.xlsx")
    assert chosen(root, files="*.jsonl") == ["a.jsonl"]


def test_files_that_are_left_out_are_counted(root: Path) -> None:
    write(root, "train.jsonl", "dev.jsonl", "test.jsonl", "notes.md", "README.txt")
    source = open_source(Address("dataset", SET), root.parents[1])
    facts = describe_source(source, fetch(root))
    assert (facts.uri, facts.files, facts.files_left_out) == (SET, 1, 2)
    assert facts.bytes == len(ROWS)


def test_a_pinned_digest_may_have_a_prefix(root: Path) -> None:
    write(root, "a.jsonl")
    source = open_source(Address("dataset", SET), root.parents[1])
    files = fetch(root)
    for pinned in (f"sha256:{files[0].sha256}", files[0].sha256, None):
        check_digest(source, files, pinned)


def save_to_disk(folder: Path, **state: Any) -> None:
    """What Dataset.save_to_disk of datasets writes."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist([json.loads(ROWS)])
    with (
        pyarrow.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink,
        pyarrow.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    write(folder, "dataset_info.json", content='{"features": {"prompt": {"dtype": "string"}}}')
    write(folder, "state.json", content=json.dumps({"_split": "train", **state}))
    write(folder, "cache-0123456789abcdef.arrow", content=b"of a map()")


def test_a_folder_of_save_to_disk_is_read(root: Path) -> None:
    save_to_disk(root)
    _, (sample,) = read_samples(fetch(root), job())
    assert sample.file == "data-00000-of-00001.arrow"


def test_state_json_decides_which_saved_files_are_read(root: Path) -> None:
    save_to_disk(root, _data_files=[{"filename": "data-00000-of-00001.arrow"}])
    write(root, "data-00000-of-00002.arrow")
    assert chosen(root) == ["data-00000-of-00001.arrow"]
    names = [f"data-0000{number}-of-00002.arrow" for number in (0, 1)]
    save_to_disk(root, _data_files=[{"filename": name} for name in names])
    failure = refusal(root)
    assert (failure.reason, failure.file) == ("BrokenFile", "state.json")
    assert "data-00001-of-00002.arrow, which is missing" in failure.message


def test_the_splits_of_a_saved_dataset_dict_are_its_folders(root: Path) -> None:
    for name in ("train_sft", "test_sft", "extra"):
        save_to_disk(root / name)
    splits = {"splits": ["train_sft", "test_sft", "extra"]}
    write(root, "dataset_dict.json", content=json.dumps(splits))
    assert "extra, test_sft, train_sft" in refusal(root).message
    assert chosen(root, split="extra") == ["extra/data-00000-of-00001.arrow"]


CARD = """---
configs:
- config_name: english
  data_files:
  - split: train
    path: en/part-*.jsonl
- config_name: german
  data_dir: de
---
"""


def test_the_card_declares_configurations(root: Path) -> None:
    write(root, "en/part-1.jsonl", "en/check.jsonl", "de/train.jsonl", "de/test.jsonl")
    write(root, "README.md", content=CARD)
    failure = refusal(root)
    assert failure.reason == "ConfigNotChosen"
    assert "english, german" in failure.message
    assert chosen(root, config="english") == ["en/part-1.jsonl"]
    assert chosen(root, config="german") == ["de/train.jsonl"]


DEEP = "[" * 2000 + "]" * 2000


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("README.md", "---\nconfigs: [\n---\n"),
        ("README.md", f"---\nconfigs: {DEEP}\n---\n"),
        ("dataset_dict.json", f'{{"splits": {DEEP}}}'),
        ("state.json", f'{{"_data_files": {DEEP}}}'),
    ],
)
def test_a_broken_card_is_refused(root: Path, name: str, content: str) -> None:
    write(root, "a.jsonl")
    write(root, "a.arrow")
    write(root, name, content=content)
    failure = refusal(root)
    assert (failure.reason, failure.file) == ("BrokenFile", name)
    assert chosen(root, files="*.jsonl") == ["a.jsonl"]


def test_rows_below_another_split_of_a_json_object_are_not_trained_on(root: Path) -> None:
    write(root, "test.json", content=json.dumps({"test": [json.loads(ROWS)], "train": []}))
    uri = f"{SET}/test.json"
    with pytest.raises(UserError) as caught:
        read_samples(fetch(root, uri), job())
    assert (caught.value.failure.reason, caught.value.failure.line) == ("BrokenRow", 1)
    for selection in ({"split": "test"}, {"default_split": "validation"}):
        _, samples = read_samples(fetch(root, uri, **selection), job())
        assert len(samples) == 1
