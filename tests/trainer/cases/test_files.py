"""What people upload as data sets, through the whole of prepare: used, or refused in words."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pytest
from finetune_api.facts import SourceFacts
from finetune_trainer.data.json_lines import read_json_lines
from finetune_trainer.data.tokenizer import load_tokenizer
from finetune_trainer.evaluation.prompts import choose_prompts

from tests.trainer.prepare_world import World, facts_of
from tests.trainer.servers import Hub, Repository
from tests.trainer.tiny import tiny_rows, write_rows

ROWS: list[dict[str, Any]] = list(tiny_rows(90))
TRAIN, VALIDATION, TEST = ROWS[:60], ROWS[60:75], ROWS[75:]


def write_splits(folder: Path, names: dict[str, list[dict[str, Any]]]) -> None:
    for name, rows in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_rows(folder / name, rows)


def data(world: World, *parts: str) -> Path:
    return world.root.joinpath("pvc", "data", *parts)


def trained_on(world: World, uri: str, **source: Any) -> int:
    """How many rows of a source are used, for training or held out."""
    facts = facts_of(world.prepare(dataset={"train": [{"uri": uri, **source}]}))
    return facts.train_examples + facts.eval_examples


def sources(world: World, **dataset: Any) -> list[SourceFacts]:
    found = facts_of(world.prepare(dataset=dataset)).sources
    assert found is not None
    return found


LAYOUTS = {
    "shards in data": "data/{}-00000-of-00001.jsonl",
    "file names": "{}.jsonl",
    "file names with more words": "words-{}_v2.jsonl",
    "upper case": "{}.JSONL",
    "folders": "{}/part-0.jsonl",
    "folders with more words": "en-{}/rows.jsonl",
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_only_train_is_trained_on_where_names_tell_the_split(world: World, layout: str) -> None:
    upper = layout.endswith("JSONL")
    named = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    splits = {layout.format(n.upper() if upper else n): rows for n, rows in named.items()}
    write_splits(data(world, "set"), splits)
    assert trained_on(world, "pvc://data/set") == len(TRAIN)
    (source,) = sources(world, train=[{"uri": "pvc://data/set"}])
    assert (source.files, source.files_left_out, source.rows) == (1, 2, len(TRAIN))


def test_the_validation_files_of_the_same_folder_are_held_out(world: World) -> None:
    layout = {"train.jsonl": TRAIN, "dev.jsonl": VALIDATION, "test.jsonl": TEST}
    write_splits(data(world, "set"), layout)
    uri = "pvc://data/set"
    for validation in ({"uri": uri, "split": "validation"}, {"uri": uri}):
        result = world.prepare(dataset={"train": [{"uri": uri}], "validation": validation})
        facts = facts_of(result)
        assert (facts.train_examples, facts.eval_examples) == (len(TRAIN), len(VALIDATION))
    facts = facts_of(
        world.prepare(
            dataset={"train": [{"uri": uri}], "validation": {"uri": uri, "split": "test"}}
        )
    )
    assert facts.eval_examples == len(TEST)


def test_a_split_that_is_not_there_is_refused_with_those_that_are(world: World) -> None:
    write_splits(data(world, "set"), {"validation.jsonl": VALIDATION, "test.jsonl": TEST})
    failure = world.fails(dataset={"train": [{"uri": "pvc://data/set"}]})
    assert failure.reason == "NoMatchingFiles"
    assert "its splits are: test, validation" in failure.message
    assert "dataset.train[0].split" in (failure.remedy or "")
    assert trained_on(world, "pvc://data/set", split="test") == len(TEST)


def test_a_file_of_two_splits_is_refused(world: World) -> None:
    write_splits(data(world, "set"), {"train.jsonl": TRAIN, "train_test.jsonl": TEST})
    failure = world.fails(dataset={"train": [{"uri": "pvc://data/set"}]})
    assert (failure.reason, failure.file) == ("NoMatchingFiles", "train_test.jsonl")
    assert trained_on(world, "pvc://data/set", files="train.jsonl") == len(TRAIN)


def test_a_folder_whose_names_tell_no_split_is_read_as_a_whole(world: World) -> None:
    write_splits(data(world, "set"), {"a.jsonl": TRAIN, "contest/b.jsonl": TEST})
    assert trained_on(world, "pvc://data/set") == len(TRAIN) + len(TEST)


def test_many_shards_are_selected_by_a_pattern(world: World) -> None:
    shards = {
        f"data/train-{number:05}-of-00020.jsonl": TRAIN[3 * number : 3 * number + 3]
        for number in range(20)
    }
    write_splits(data(world, "set"), {**shards, "data/test-00000-of-00001.jsonl": TEST})
    assert trained_on(world, "pvc://data/set") == 60
    for files in ("data/train-[0-9]*-of-*", "**/train-*", "data/train-*.jsonl"):
        assert trained_on(world, "pvc://data/set", files=files) == 60
    assert trained_on(world, "pvc://data/set", files="data/train-0000[0-4]-*") == 15
    assert trained_on(world, "pvc://data/set", files="**", split="test") == len(TEST)


def test_a_missing_shard_is_refused_unless_files_selects_the_others(world: World) -> None:
    names = ["data/train-00000-of-00003.jsonl", "data/train-00002-of-00003.jsonl"]
    write_splits(data(world, "set"), dict.fromkeys(names, TRAIN[:30]))
    failure = world.fails(dataset={"train": [{"uri": "pvc://data/set"}]})
    assert (failure.reason, failure.file) == ("NoMatchingFiles", names[0])
    assert "data/train-00001-of-00003.jsonl" in failure.message
    assert trained_on(world, "pvc://data/set", files="data/*") == 60
    assert trained_on(world, f"pvc://data/set/{names[0]}") == 30


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("split=train/part-0.jsonl", "split=test/part-0.jsonl"),
        ("trainset.jsonl", "testset.jsonl"),
        ("dataTrain.jsonl", "dataTest.jsonl"),
        ("data (train).jsonl", "data (test).jsonl"),
        ("train+a.jsonl", "test+a.jsonl"),
        ("train.jsonl", "holdout.jsonl"),
    ],
)
def test_rows_of_a_test_are_not_trained_on(world: World, train: str, test: str) -> None:
    write_splits(data(world, "set"), {train: TRAIN, test: TEST})
    assert trained_on(world, "pvc://data/set") == len(TRAIN)


@pytest.mark.parametrize("name", ["holdout.jsonl", "data (test).jsonl", "mytest.jsonl"])
def test_rows_beside_those_of_a_test_are_selected_by_a_pattern(world: World, name: str) -> None:
    write_splits(data(world, "set"), {"data.jsonl": TRAIN, name: TEST})
    failure = world.fails(dataset={"train": [{"uri": "pvc://data/set"}]})
    assert failure.reason == "NoMatchingFiles"
    assert name in failure.message
    assert trained_on(world, "pvc://data/set", files="data.jsonl") == len(TRAIN)


def test_a_pattern_that_matches_nothing_is_refused_with_the_files(world: World) -> None:
    write_splits(data(world, "set"), {"a.jsonl": TRAIN, "b/c.jsonl": TEST})
    failure = world.fails(dataset={"train": [{"uri": "pvc://data/set", "files": "*.csv"}]})
    assert failure.reason == "NoMatchingFiles"
    assert "a.jsonl, b/c.jsonl" in failure.message


def test_a_pattern_in_the_address_is_refused_with_the_remedy(world: World) -> None:
    write_splits(data(world, "set"), {"a.jsonl": TRAIN})
    failure = world.fails(dataset={"train": [{"uri": "pvc://data/set/*.jsonl"}]})
    assert failure.reason == "DatasetNotFound"
    assert "dataset.train[0].files" in (failure.remedy or "")


@pytest.mark.parametrize(
    ("folder", "uri"),
    [
        ("My Data", "pvc://data/My Data"),
        ("My Data", "pvc://data/My%20Data"),
        ("My%20Data", "pvc://data/My%20Data"),
        ("c#", "pvc://data/c#"),
        ("c#", "pvc://data/c%23"),
        ("50%off", "pvc://data/50%off"),
        ("töne", "pvc://data/töne"),
        ("töne", "pvc://data/t%C3%B6ne"),
        ("what?", "pvc://data/what?"),
        ("a+b", "pvc://data/a+b"),
    ],
)
def test_names_may_have_any_character(world: World, folder: str, uri: str) -> None:
    write_splits(data(world, folder), {"more rows.jsonl": TRAIN})
    assert trained_on(world, uri) == len(TRAIN)
    assert trained_on(world, f"{uri}/more rows.jsonl") == len(TRAIN)


def test_names_that_cannot_exist_are_not_found(world: World) -> None:
    for uri in ("pvc://data/My%20Data", f"pvc://data/{'x' * 300}/rows.jsonl"):
        assert world.fails(dataset={"train": [{"uri": uri}]}).reason == "DatasetNotFound"
    for uri in ("pvc://data/%2e%2e/other", "pvc://data/a%00b"):
        assert world.fails(dataset={"train": [{"uri": uri}]}).reason == "PathEscape"


def test_line_ends_of_unicode_stay_inside_their_texts(
    world: World, tiny_model_folder: Path
) -> None:
    ends = "\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1dh\x1ei\rj"
    rows = [{"prompt": f"Clean {i}:{ends}", "completion": f"{i}{ends}"} for i in range(40)]
    path = data(world, "ends.jsonl")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(text.encode())
    facts = facts_of(world.prepare(dataset={"train": [{"uri": "pvc://data/ends.jsonl"}]}))
    assert facts.train_examples + facts.eval_examples == 40
    held_out = read_json_lines(world.data / "eval.jsonl")
    run = world.run_config(evaluation={"generations": 40}).model_copy(update={"stage": "evaluate"})
    asked = choose_prompts(run, load_tokenizer(tiny_model_folder))
    assert len(asked) == len(held_out) == facts.eval_examples
    prompts = {row["prompt"]: row["completion"] for row in rows}
    assert {
        each.messages[0]["content"]: each.reference for each in asked
    }.items() <= prompts.items()


@pytest.mark.parametrize("key", ["data", "rows", "examples"])
def test_rows_below_one_key_of_a_json_object_are_read(world: World, key: str) -> None:
    document = {"version": 1, "about": {"by": "us"}, key: TRAIN}
    data(world, "object.json").write_text(json.dumps(document, indent=1))
    assert trained_on(world, "pvc://data/object.json") == len(TRAIN)
    broken = {"version": 1, key: [*TRAIN[:2], {"prompt": "p", "completion": 7}]}
    data(world, "object.json").write_text(json.dumps(broken, indent=1))
    failure = world.fails_again(dataset={"train": [{"uri": "pvc://data/object.json"}]})
    assert (failure.reason, failure.line) == ("WrongType", 12)


def test_rows_below_another_split_of_a_json_object_are_not_trained_on(world: World) -> None:
    data(world, "test.json").write_text(json.dumps({"test": TEST, "train": []}))
    data(world, "train.json").write_text(json.dumps({"train": TRAIN, "test": []}))
    uri = "pvc://data/test.json"
    failure = world.fails(dataset={"train": [{"uri": uri}]})
    assert (failure.reason, failure.file, failure.line) == ("BrokenRow", "test.json", 1)
    train = [{"uri": "pvc://data/train.json"}]
    facts = facts_of(world.prepare(dataset={"train": train, "validation": {"uri": uri}}))
    assert (facts.train_examples, facts.eval_examples) == (len(TRAIN), len(TEST))


def test_a_list_of_texts_is_refused(world: World) -> None:
    data(world, "texts.json").write_text('["one",\n "two"]')
    failure = world.fails(dataset={"train": [{"uri": "pvc://data/texts.json"}]})
    assert (failure.reason, failure.line) == ("WrongType", 1)


@pytest.mark.parametrize(
    ("name", "content", "line", "words"),
    [
        ("a.jsonl", '{"prompt": "é"}\n'.encode("utf-16"), 1, "UTF-16"),
        ("a.jsonl", '{"prompt": "a"}\n'.encode("utf-16-le"), 1, "byte 2"),
        ("a.csv", "prompt,completion\ntea,thé\n".encode("latin-1"), 2, "byte 7"),
        ("a.tsv", "prompt\tcompletion\ntea\tthé\n".encode("utf-16-be"), 1, "byte 1"),
        ("a.json", '[\n{"prompt": "é"}]'.encode("latin-1"), 2, "byte 13"),
        ("a.txt", "naïve\n".encode("cp1252"), 1, "byte 3"),
    ],
)
def test_other_encodings_are_refused_with_line_and_byte(
    world: World, name: str, content: bytes, line: int, words: str
) -> None:
    data(world, name).write_bytes(content)
    failure = world.fails(dataset={"train": [{"uri": f"pvc://data/{name}"}]})
    assert (failure.reason, failure.file, failure.line) == ("NotUTF8", name, line)
    assert words in failure.message


def test_a_byte_order_mark_and_carriage_returns_are_read(world: World) -> None:
    lines = ["prompt,completion", *(f"What is {i} plus {i}?,It is {2 * i}." for i in range(30))]
    data(world, "a.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert trained_on(world, "pvc://data/a.csv") == 30


def save_to_disk(folder: Path, rows: list[dict[str, Any]]) -> None:
    """What Dataset.save_to_disk of datasets writes."""
    folder.mkdir(parents=True)
    table = pyarrow.Table.from_pylist(rows)
    with (
        pyarrow.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink,
        pyarrow.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=7)
    (folder / "dataset_info.json").write_text('{"features": {"prompt": {"dtype": "string"}}}')
    (folder / "state.json").write_text('{"_split": "train"}')


def test_a_folder_of_save_to_disk_is_read(world: World) -> None:
    save_to_disk(data(world, "saved"), TRAIN)
    (data(world, "saved") / "cache-0123456789abcdef.arrow").write_bytes(b"of a map()")
    assert trained_on(world, "pvc://data/saved") == len(TRAIN)


def test_state_json_decides_which_saved_files_are_read(world: World) -> None:
    folder = data(world, "saved")
    save_to_disk(folder, TRAIN)
    state = {"_split": "train", "_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (folder / "state.json").write_text(json.dumps(state))
    save_to_disk(world.root / "older", TEST)
    older = world.root / "older" / "data-00000-of-00001.arrow"
    older.rename(folder / "data-00000-of-00002.arrow")
    assert trained_on(world, "pvc://data/saved") == len(TRAIN)
    state["_data_files"] = [{"filename": f"data-0000{n}-of-00002.arrow"} for n in (0, 1)]
    (folder / "state.json").write_text(json.dumps(state))
    failure = world.fails_again(dataset={"train": [{"uri": "pvc://data/saved"}]})
    assert (failure.reason, failure.file) == ("BrokenFile", "state.json")
    assert "data-00001-of-00002.arrow, which is missing" in failure.message


def test_the_splits_of_a_saved_dataset_dict_are_its_folders(world: World) -> None:
    for name, rows in (("train_sft", TRAIN), ("test_sft", TEST), ("extra", VALIDATION)):
        save_to_disk(data(world, "saved", name), rows)
    splits = {"splits": ["train_sft", "test_sft", "extra"]}
    data(world, "saved", "dataset_dict.json").write_text(json.dumps(splits))
    failure = world.fails(dataset={"train": [{"uri": "pvc://data/saved"}]})
    assert "extra, test_sft, train_sft" in failure.message
    assert trained_on(world, "pvc://data/saved", split="train_sft") == len(TRAIN)
    assert trained_on(world, "pvc://data/saved", split="extra") == len(VALIDATION)


@pytest.fixture
def words(world: World, hub: Hub, tmp_path: Path) -> Path:
    """The folder of the data set acme/words on the hub."""
    folder = tmp_path / "words"
    folder.mkdir()
    hub.repositories["datasets/acme/words"] = Repository(folder)
    for field in ("dataset.train[0]", "dataset.validation"):
        world.secrets[field] = world.secrets["model"]
    return folder


CARD = """---
license: mit
configs:
- config_name: english
  data_files:
  - split: train
    path: en/part-*.jsonl
  - split: validation
    path: ["en/check.jsonl"]
- config_name: german
  data_dir: de
---
# Words
"""


def test_the_card_of_a_data_set_declares_its_configurations(world: World, words: Path) -> None:
    uri = "hf://datasets/acme/words"
    layout = {"en/part-1.jsonl": TRAIN, "en/check.jsonl": VALIDATION, "de/test.jsonl": TEST}
    write_splits(words, {**layout, "de/train.jsonl": TRAIN[:30]})
    (words / "README.md").write_text(CARD)
    failure = world.fails(dataset={"train": [{"uri": uri}]})
    assert failure.reason == "ConfigNotChosen"
    assert "english, german" in failure.message
    failure = world.fails(dataset={"train": [{"uri": uri, "config": "french"}]})
    assert "english, german" in failure.message
    assert trained_on(world, uri, config="english") == len(TRAIN)
    assert trained_on(world, uri, config="german") == 30
    facts = facts_of(
        world.prepare(
            dataset={
                "train": [{"uri": uri, "config": "english"}],
                "validation": {"uri": uri, "config": "english"},
            }
        )
    )
    assert facts.eval_examples == len(VALIDATION)
    (words / "README.md").write_text(CARD.replace("data_dir: de", "data_dir: de\n  default: true"))
    assert trained_on(world, uri) == 30


def test_a_broken_card_is_refused(world: World, words: Path) -> None:
    write_splits(words, {"a.jsonl": TRAIN})
    (words / "README.md").write_text("---\nconfigs: [\n---\n")
    failure = world.fails(dataset={"train": [{"uri": "hf://datasets/acme/words"}]})
    assert (failure.reason, failure.file) == ("BrokenFile", "README.md")
    assert trained_on(world, "hf://datasets/acme/words", files="*.jsonl") == len(TRAIN)


def test_the_commit_of_a_hub_data_set_is_reported(world: World, hub: Hub, words: Path) -> None:
    write_splits(words, {"sub/my rows.jsonl": TRAIN})
    for uri in ("hf://datasets/acme/words/sub", "hf://datasets/acme/words/sub/my%20rows.jsonl"):
        (source,) = sources(world, train=[{"uri": uri}])
        assert (source.uri, source.revision) == (uri, hub.repositories["acme/tiny"].commit)
        size = (words / "sub" / "my rows.jsonl").stat().st_size
        assert (source.files, source.rows, source.bytes) == (1, len(TRAIN), size)


def test_the_digest_of_a_source_can_be_pinned(world: World) -> None:
    write_splits(data(world, "set"), {"a.jsonl": TRAIN, "b/c.jsonl": TEST})
    (source,) = sources(world, train=[{"uri": "pvc://data/set"}])
    assert source.digest is not None
    shown = subprocess.run(
        "sha256sum a.jsonl b/c.jsonl | sha256sum",
        shell=True,
        cwd=data(world, "set"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert source.digest == f"sha256:{shown.stdout.split()[0]}"
    for pinned in (source.digest, source.digest.removeprefix("sha256:")):
        assert trained_on(world, "pvc://data/set", sha256=pinned) == 75
    write_rows(data(world, "set", "a.jsonl"), TRAIN[1:])
    failure = world.fails_again(
        dataset={"train": [{"uri": "pvc://data/set", "sha256": source.digest}]}
    )
    assert failure.reason == "DigestMismatch"
    (changed,) = sources(world, train=[{"uri": "pvc://data/set"}])
    assert source.digest in failure.message
    assert str(changed.digest) in failure.message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "Git LFS"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "Git LFS"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "Git LFS"),
        ("a.jsonl", b"\n<!DOCTYPE html><html><title>Log in</title></html>", "web page"),
        ("a.csv", b"<html><body>403</body></html>", "web page"),
        ("a.parquet", b"<!doctype html>", "web page"),
        ("a.jsonl", b"PK\x03\x04" + bytes(60), "zip archive"),
        ("a.csv", b"PK\x03\x04" + bytes(60), "Excel"),
        ("a.jsonl", b"a.jsonl" + bytes(250) + b"ustar  \0" + bytes(300), "tar archive"),
        ("a.jsonl", b"\x80\x04\x95\x10\0\0\0", "pickle"),
        ("a.jsonl", b"PAR1" + bytes(30), "Parquet"),
        ("a.json", b"BZh91AY&SY\xd0\xff\x01", "bzip2"),
        ("a.arrow", b"\x1f\x8b\x08\0\0", "compressed as a whole"),
    ],
)
def test_files_that_hold_something_else_are_named_as_that(
    world: World, name: str, content: bytes, words: str
) -> None:
    data(world, name).write_bytes(content)
    failure = world.fails(dataset={"train": [{"uri": f"pvc://data/{name}"}]})
    assert (failure.reason, failure.file) == ("NotRows", name)
    assert words in failure.message
    if words == "Git LFS":
        assert "git lfs pull" in (failure.remedy or "")


def test_lost_and_found_of_a_volume_is_no_data(world: World) -> None:
    write_splits(data(world, "set"), {"a.jsonl": TRAIN, "lost+found/b.jsonl": TEST})
    assert trained_on(world, "pvc://data/set") == len(TRAIN)


def test_hidden_files_are_no_data_unless_they_are_named(world: World) -> None:
    write_splits(data(world, "set"), {".trash/a.jsonl": TRAIN, "_old/b.jsonl": TEST})
    failure = world.fails(dataset={"train": [{"uri": "pvc://data/set"}]})
    assert failure.reason == "UnsupportedFormat"
    assert trained_on(world, "pvc://data/set", files="_old/*") == len(TEST)
    assert trained_on(world, "pvc://data/set/_old/b.jsonl") == len(TEST)


def test_text_files_beside_rows_need_a_pattern(world: World) -> None:
    write_splits(data(world, "set"), {"a.jsonl": TRAIN})
    data(world, "set", "README.txt").write_text("Made by us.")
    assert trained_on(world, "pvc://data/set") == len(TRAIN)
    data(world, "set", "novel.txt").write_text("It was a dark and stormy night.")
    failure = world.fails_again(dataset={"train": [{"uri": "pvc://data/set"}]})
    assert (failure.reason, failure.file) == ("UnsupportedFormat", "novel.txt")
    assert trained_on(world, "pvc://data/set", files="*.jsonl") == len(TRAIN)


@pytest.mark.parametrize(
    "name",
    [
        *("b.jsonl.bz2", "b.csv.xz", "b.xlsx", "b.parquet.gz", "b.zip", "b.tar.gz", "b.pkl"),
        *("b.jsonl.part", "part-00000", "b.jsonl/part-0", "authors-letters.txt"),
    ],
)
def test_rows_in_a_format_that_is_not_read_are_not_passed_over(world: World, name: str) -> None:
    write_splits(data(world, "set"), {"a.jsonl": TRAIN})
    data(world, "set", name).parent.mkdir(exist_ok=True)
    data(world, "set", name).write_bytes(b"rows")
    failure = world.fails(dataset={"train": [{"uri": "pvc://data/set"}]})
    assert (failure.reason, failure.file) == ("UnsupportedFormat", name)
    assert trained_on(world, "pvc://data/set", files="*.jsonl") == len(TRAIN)
