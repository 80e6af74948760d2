"""Every format of files: its rows with their lines, and what is wrong with damaged ones."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from finetune_api.dataset import InvalidRows
from finetune_api.failure import Failure
from finetune_trainer.data.file_formats import Record, iter_records
from finetune_trainer.data.read_records import read_samples
from finetune_trainer.data.row_errors import RowError, RowErrors
from finetune_trainer.data.text_lines import iter_lines
from finetune_trainer.runtime.errors import UserError

from tests.trainer.rows import job, json_lines, write_file

ROWS: list[dict[str, Any]] = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(5)]


def records(folder: Path, name: str, content: bytes | str) -> list[Record]:
    errors = RowErrors()
    found = list(iter_records([write_file(folder, name, content)], errors))
    errors.raise_if_any()
    return found


def read(folder: Path, name: str, content: bytes | str) -> list[tuple[int, dict[str, Any]]]:
    return [(record.line, record.values) for record in records(folder, name, content)]


def failure(folder: Path, name: str, content: bytes | str) -> Failure:
    with pytest.raises(UserError) as caught:
        read(folder, name, content)
    assert caught.value.failure.file == name
    assert caught.value.failure.remedy
    return caught.value.failure


def zstd(content: bytes) -> bytes:
    return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))


def arrow_file(table: Any) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def arrow_stream(table: Any, chunk: int = 1000) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=chunk)
    return bytes(sink.getvalue())


def parquet(table: Any, **options: Any) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, **options)
    return bytes(sink.getvalue())


TABLE = pyarrow.Table.from_pylist(ROWS)
CSV = "prompt,completion\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in ROWS)
TEXTS = {
    "a.jsonl": json_lines(*ROWS),
    "a.ndjson": json_lines(*ROWS),
    "a.json": json.dumps(ROWS, indent=1),
    "a.csv": CSV,
    "a.tsv": CSV.replace(",", "\t"),
}


@pytest.mark.parametrize("name", list(TEXTS))
def test_text_formats_are_read_plain_and_compressed(tmp_path: Path, name: str) -> None:
    plain = read(tmp_path, name, TEXTS[name])
    assert [values for _, values in plain] == ROWS
    content = TEXTS[name].encode()
    half = len(content) // 2
    assert read(tmp_path, f"{name}.gz", gzip.compress(content)) == plain
    assert read(tmp_path, f"{name}.zst", zstd(content)) == plain
    frames = zstd(content[:half]) + zstd(content[half:])
    assert read(tmp_path, f"{name.upper()}.ZST", frames) == plain
    members = gzip.compress(content[:half]) + gzip.compress(content[half:])
    assert read(tmp_path, f"{name}.gz", members) == plain
    assert read(tmp_path, f"{name}.zst", content) == plain, "decompressed in transit"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", parquet(TABLE)),
        ("a.arrow", arrow_file(TABLE)),
        ("a.arrow", arrow_stream(TABLE)),
        ("a.arrow", arrow_stream(TABLE, chunk=2)),
    ],
)
def test_columnar_formats_are_read_with_the_number_of_the_row(
    tmp_path: Path, name: str, content: bytes
) -> None:
    assert read(tmp_path, name, content) == list(enumerate(ROWS, 1))


def test_a_line_of_text_is_a_row_and_blank_lines_are_none(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbfone\u2028\r\n\n  two \nthree".replace(b"\\u2028", "\u2028".encode())
    assert read(tmp_path, "a.txt", content) == [
        (1, {"text": "one\u2028"}),
        (3, {"text": "  two "}),
        (4, {"text": "three"}),
    ]


@pytest.mark.parametrize("content", ["one\rtwo\rthree", "one\ntwo\rthree\n", "one\rtwo\r\n"])
def test_carriage_returns_do_not_end_lines_of_text(tmp_path: Path, content: str) -> None:
    refusal = failure(tmp_path, "a.txt", content)
    assert (refusal.reason, refusal.line) == ("BrokenRow", 1 + content.startswith("one\n"))
    assert "carriage return" in refusal.message
    assert read(tmp_path, "b.txt", "one\r\r\ntwo\r") == [(1, {"text": "one"}), (2, {"text": "two"})]


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
@pytest.mark.parametrize("damage", ["cut", "garbage after it"])
def test_broken_compression_is_refused(tmp_path: Path, compress: Any, damage: str) -> None:
    content = compress(json_lines(*ROWS * 99).encode())
    content = content[:-9] if damage == "cut" else content + b"garbage"
    assert failure(tmp_path, "a.jsonl", content).reason == "BrokenFile"


@pytest.mark.parametrize("outer", [gzip.compress, zstd])
@pytest.mark.parametrize("inner", [gzip.compress, zstd])
def test_nested_compression_is_refused(tmp_path: Path, outer: Any, inner: Any) -> None:
    refusal = failure(tmp_path, "a.jsonl.gz", outer(inner(json_lines(*ROWS).encode())))
    assert refusal.reason == "NotRows"
    assert "compressed twice" in refusal.message


def test_a_json_file_holds_a_list_an_object_with_rows_one_row_or_lines(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    assert read(tmp_path, "a.json", json.dumps(row, indent=1)) == [(1, row)]
    assert read(tmp_path, "a.json", json.dumps(row)) == [(1, row)]
    tools = {"question": "q", "answer": "a", "tools": [{"name": "t"}]}
    assert read(tmp_path, "a.json", "\n" + json.dumps(tools, indent=1)) == [(2, tools)]
    for more in ({"tags": []}, {"sources": [{"url": "u"}]}, {"a": [{"b": 1}], "c": [{"d": 1}]}):
        for one in (row, ROWS[0], {"instruction": "q", "output": "a"}):
            assert read(tmp_path, "a.json", json.dumps(one | more)) == [(1, one | more)]
    assert read(tmp_path, "a.json", json_lines(*ROWS)) == list(enumerate(ROWS, 1))
    nested = json.dumps({"version": 2, "license": "mit", "data": ROWS[:2], "end": []}, indent=1)
    assert read(tmp_path, "a.json", nested) == [(5, ROWS[0]), (9, ROWS[1])]
    assert read(tmp_path, "a.json", json.dumps({"data": ROWS[:2]})) == [
        (1, ROWS[0]),
        (1, ROWS[1]),
    ]


@pytest.mark.parametrize(
    ("content", "reason", "line", "words"),
    [
        ('{\n "train": [{"a": 1}],\n "test": [{"a": 2}]\n}', "BrokenRow", 1, "test, train"),
        ('{"system_prompt": "Be kind.", "data": [{"a": 1}]}', "BrokenRow", 1, "'system_prompt'"),
        ('{"text": "Be kind.", "data": [{"a": 1}]}', "BrokenRow", 1, "'text'"),
        ('{"data": [{"a": 1}], "more": ["b"], "next": "2"}', "BrokenRow", 1, "'more', 'next'"),
        ('{"test": [{"a": 1}], "train": []}', "BrokenRow", 1, "'test'"),
        ('{"testData": [{"a": 1}]}', "BrokenRow", 1, "'testData'"),
        ('{"mytest": [{"a": 1}]}', "BrokenRow", 1, "'mytest'"),
        ('{"license": {"prefix": "Q:"}, "data": [{"a": 1}]}', "BrokenRow", 1, "'license'"),
        ('{"citation": ["a", {"b": 1}], "data": [{"a": 1}]}', "BrokenRow", 1, "citation, data"),
        ('{"holdout": [{"a": 1}]}', "BrokenRow", 1, "'holdout'"),
        ('{\n "data": []\n}', "BrokenRow", 1, "no rows"),
        ('{\n "data": [\n  {"a": 1},\n  "b"\n ]\n}', "WrongType", 4, "a text"),
        ('{\n "data": [\n  {"a": 1},\n  {"a" 2}\n ]\n}', "BrokenRow", 4, "column 8"),
        ('{\n "data": 1,\n "data": [{"a": 1}]\n}', "BrokenRow", 1, "'data' appears twice"),
        ('[{"a": 1}]\n[{"a": 2}]', "BrokenRow", 2, "goes on after"),
        ('[\n{"a": 1}\n', "BrokenRow", 3, "column 1"),
        ('{\n"a": 1\n}\n{\n"a": 2\n}', "BrokenRow", 4, "goes on after"),
        ('"text"', "WrongType", 1, "a text"),
        ('["one",\n "two"]', "WrongType", 1, "a text"),
    ],
)
def test_other_json_documents_are_refused_with_their_line(
    tmp_path: Path, content: str, reason: str, line: int, words: str
) -> None:
    refusal = failure(tmp_path, "a.json", content)
    assert (refusal.reason, refusal.line) == (reason, line)
    assert words in refusal.message


@pytest.mark.parametrize("blank", [1023, 1024, 3000, 70_000])
def test_white_space_before_the_first_value_does_not_hide_it(tmp_path: Path, blank: int) -> None:
    content = blank * " " + json.dumps(ROWS)
    assert read(tmp_path, "a.json", content) == [(1, row) for row in ROWS]
    assert "one JSON list" in failure(tmp_path, "a.jsonl", content).message


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (json.dumps({"data": ROWS}, indent=1), "object over several lines"),
        (json.dumps({"data": ROWS}, indent=1).replace("{\n", "{", 1), "object over several lines"),
        (json.dumps(ROWS), "list"),
        ("\n" + json.dumps(ROWS, indent=1), "list"),
    ],
)
def test_one_json_value_in_a_file_of_json_lines_is_refused(
    tmp_path: Path, content: str, what: str
) -> None:
    refusal = failure(tmp_path, "a.jsonl", content)
    assert (refusal.reason, refusal.line) == ("BrokenRow", 1)
    assert f"one JSON {what}" in refusal.message
    assert ".json" in (refusal.remedy or "")


@pytest.mark.parametrize(
    ("name", "content", "line", "words"),
    [
        ("a.jsonl", '{"prompt": "é"}\n'.encode("utf-16"), 1, "UTF-16"),
        ("a.jsonl", '{"prompt": "a"}\n'.encode("utf-16-le"), 1, "byte 2"),
        ("a.csv", "prompt,completion\ntea,thé\n".encode("latin-1"), 2, "byte 7"),
        ("a.csv", b'prompt,completion\n"tea\n\xff,c\n', 3, "byte 1"),
        ("a.csv", b'prompt,completion\n"\xff\n\xff",c\n', 2, "byte 2"),
        ("a.tsv", "prompt\tcompletion\ntea\tthé\n".encode("utf-16-be"), 1, "byte 1"),
        ("a.json", '[\n{"prompt": "é"}]'.encode("latin-1"), 2, "byte 13"),
        ("a.json", '{"prompt": "a"}\n'.encode("utf-16-le"), 1, "byte 2"),
        ("a.txt", "naïve\n".encode("cp1252"), 1, "byte 3"),
    ],
)
def test_other_encodings_are_refused_with_line_and_byte(
    tmp_path: Path, name: str, content: bytes, line: int, words: str
) -> None:
    refusal = failure(tmp_path, name, content)
    assert (refusal.reason, refusal.line) == ("NotUTF8", line)
    assert words in refusal.message


def test_a_byte_order_mark_and_carriage_returns_are_read(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode()
    assert [values for _, values in read(tmp_path, "a.csv", content)] == ROWS
    content = b"\xef\xbb\xbf" + json.dumps(ROWS).encode()
    assert [values for _, values in read(tmp_path, "a.json", content)] == ROWS


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", LFS_POINTER, "Git LFS"),
        ("a.parquet", LFS_POINTER, "Git LFS"),
        ("a.txt", LFS_POINTER, "Git LFS"),
        ("a.jsonl", b"\n<!DOCTYPE html><html><title>Log in</title></html>", "web page"),
        ("a.csv", b"\xef\xbb\xbf<html><body>403</body></html>", "web page"),
        ("a.parquet", b"<!doctype html>", "web page"),
        ("a.jsonl", b"PK\x03\x04" + bytes(60), "zip archive"),
        ("a.csv", b"PK\x03\x04" + bytes(60), "Excel"),
        ("a.jsonl", b"a.jsonl" + bytes(250) + b"ustar  \0" + bytes(300), "tar archive"),
        ("a.jsonl", b"\x80\x04\x95\x10\0\0\0", "pickle"),
        ("a.jsonl", b"PAR1" + bytes(30), "Parquet"),
        ("a.json", b"BZh91AY&SY\xd0\xff\x01", "bzip2"),
        ("a.csv", b"PK\x05\x06" + bytes(18), "empty zip archive"),
        ("a.txt", b"ORC" + bytes(30), "ORC"),
        ("a.jsonl", b"Obj\x01\x04\x16avro.schema", "Avro"),
        ("a.jsonl", b"\x93NUMPY\x01\x00", "NumPy"),
        ("a.arrow", b"\x1f\x8b\x08\0\0", "a compressed file"),
    ],
)
def test_the_error_names_what_a_file_holds_instead_of_rows(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    refusal = failure(tmp_path, name, content)
    assert refusal.reason == "NotRows"
    assert words in refusal.message
    assert words != "Git LFS" or "git lfs pull" in str(refusal.remedy)


def test_a_text_that_begins_like_a_binary_file_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", "ORC,BZh\n1,2\n") == [(2, {"ORC": "1", "BZh": "2"})]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_numbers_that_json_does_not_have_are_refused(tmp_path: Path, name: str, value: str) -> None:
    row = f'{{"prompt": "p", "score": {value}}}'
    content = f"[\n{row}]" if name == "a.json" else f'{{"prompt": "p"}}\n{row}\n'
    refusal = failure(tmp_path, name, content)
    assert (refusal.reason, refusal.line) == ("BrokenRow", 2)
    assert value in refusal.message


@pytest.mark.parametrize(
    ("name", "header", "words"),
    [
        ("a.csv", "prompt;completion", "separated by a semicolon"),
        ("a.csv", "prompt\tcompletion", "separated by a tab"),
        ("a.tsv", "prompt,completion", "separated by a comma"),
    ],
)
def test_another_delimiter_is_named(tmp_path: Path, name: str, header: str, words: str) -> None:
    refusal = failure(tmp_path, name, f"{header}\n{header}\n")
    assert (refusal.reason, refusal.line) == ("BrokenRow", 1)
    assert words in refusal.message


def test_a_table_of_one_column_may_have_any_name(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", "text\none\n") == [(2, {"text": "one"})]


@pytest.mark.parametrize(
    "broken", [b'"one\n\xff\nthree",c\n', b'"\xff\ntwo",c\n', b'"one\n\xff",c\n', b"\xff,c\n"]
)
def test_a_record_with_an_undecodable_line_is_skipped_completely(
    tmp_path: Path, broken: bytes
) -> None:
    file = write_file(tmp_path, "a.csv", b"prompt,completion\n" + broken + b"p0,c0\n")
    errors = RowErrors(InvalidRows(policy="Skip"))
    assert [record.values for record in iter_records([file], errors)] == ROWS[:1]
    (skipped,) = errors.skipped
    line = 2 + broken[: broken.index(b"\xff")].count(b"\n")
    assert (skipped.reason, skipped.line) == ("NotUTF8", line)


def column(values: Any, kind: Any) -> Any:
    return pyarrow.table({"prompt": ["p"] * len(values), "value": pyarrow.array(values, type=kind)})


OUT_OF_RANGE = {
    "timestamp": (2**40, pyarrow.timestamp("s")),
    "date": (2**31 - 1, pyarrow.date32()),
    "duration": (2**62, pyarrow.duration("s")),
    "time zone": (1, pyarrow.timestamp("us", tz="Mars/Olympus")),
}


@pytest.mark.parametrize("kind", list(OUT_OF_RANGE))
@pytest.mark.parametrize("write", [parquet, arrow_file, arrow_stream])
def test_a_value_that_python_cannot_hold_is_the_error_of_its_row(
    tmp_path: Path, write: Any, kind: str
) -> None:
    value, type_ = OUT_OF_RANGE[kind]
    name = "a.parquet" if write is parquet else "a.arrow"
    content = write(column([None, None, value, None, value], type_))
    refusal = failure(tmp_path, name, content)
    assert (refusal.reason, refusal.line) == ("BrokenRow", 3)
    assert "'value'" in refusal.message
    assert "1 more: line 5" in refusal.message


def test_times_in_nanoseconds_are_read(tmp_path: Path) -> None:
    table = column([10**18 + 1], pyarrow.timestamp("ns", tz="UTC"))
    ((_, values),) = read(tmp_path, "a.parquet", parquet(table))
    assert values["value"] == datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC)


NANOSECONDS = pyarrow.timestamp("ns")
NESTED = {
    "struct": ({"at": 1001}, pyarrow.struct([("at", NANOSECONDS)])),
    "list": ([1001], pyarrow.list_(NANOSECONDS)),
    "large list": ([1001], pyarrow.large_list(NANOSECONDS)),
    "fixed list": ([1001], pyarrow.list_(NANOSECONDS, 1)),
    "map": ([("a", 1001)], pyarrow.map_(pyarrow.string(), NANOSECONDS)),
    "list of structs": (
        [{"at": [1001]}],
        pyarrow.list_(pyarrow.struct([("at", pyarrow.list_(NANOSECONDS))])),
    ),
    "duration": ([1001], pyarrow.list_(pyarrow.duration("ns"))),
    "time": ({"at": 1001}, pyarrow.struct([("at", pyarrow.time64("ns"))])),
}


@pytest.mark.parametrize("kind", list(NESTED))
def test_nested_times_in_nanoseconds_are_read(tmp_path: Path, kind: str) -> None:
    value, type_ = NESTED[kind]
    (_, empty), (_, values) = read(tmp_path, "a.arrow", arrow_file(column([None, value], type_)))
    assert empty["value"] is None
    assert any(time in str(values["value"]) for time in ("0, 0, 1)", "=1)", "00:00.000001"))


def test_times_in_a_dictionary_are_read(tmp_path: Path) -> None:
    times = pyarrow.array([10**18 + 1], NANOSECONDS).dictionary_encode()
    ((_, values),) = read(tmp_path, "a.arrow", arrow_file(pyarrow.table({"value": times})))
    assert values["value"] == datetime(2001, 9, 9, 1, 46, 40)


def test_dictionaries_structs_and_decimals_are_read(tmp_path: Path) -> None:
    row = {"text": "a", "turns": [{"role": "user"}], "price": Decimal("1.50")}
    table = pyarrow.Table.from_pylist([row])
    table = table.set_column(0, "text", table["text"].dictionary_encode())
    assert read(tmp_path, "a.parquet", parquet(table)) == [(1, row)]
    assert read(tmp_path, "a.arrow", arrow_stream(table)) == [(1, row)]


@pytest.mark.parametrize("write", [arrow_file, arrow_stream])
def test_texts_that_are_not_utf8_are_the_error_of_their_row(tmp_path: Path, write: Any) -> None:
    binary = pyarrow.array([b"good", b"\xff\xfe", b"good"])
    texts = pyarrow.StringArray.from_buffers(3, binary.buffers()[1], binary.buffers()[2])
    refusal = failure(tmp_path, "a.arrow", write(pyarrow.table({"text": texts})))
    assert (refusal.reason, refusal.line) == ("NotUTF8", 2)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], ["x", "x"])
    refusal = failure(tmp_path, "a.arrow", arrow_file(table))
    assert (refusal.reason, refusal.line) == ("BrokenRow", 1)
    assert "'x' appears twice" in refusal.message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", parquet(TABLE)),
        ("a.arrow", arrow_file(TABLE)),
        ("a.arrow", arrow_stream(TABLE)),
    ],
)
def test_a_columnar_file_that_was_cut_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    for size in (0, 1, 5, len(content) // 2, len(content) - 8, len(content) - 1):
        refusal = failure(tmp_path, name, content[:size])
        assert refusal.reason == "BrokenRow", size
        assert refusal.line is not None


def test_offsets_that_lead_out_of_a_buffer_are_not_followed(tmp_path: Path) -> None:
    texts = pyarrow.array(["one", "two", "three"])
    wild = pyarrow.array([0, 3, 2**30, 11], pyarrow.int32()).buffers()[1]
    broken = pyarrow.StringArray.from_buffers(3, wild, texts.buffers()[2])
    table = pyarrow.table({"text": broken})
    refusal = failure(tmp_path, "a.arrow", arrow_stream(table))
    assert (refusal.reason, refusal.line) == ("BrokenRow", 2)


def test_a_line_that_is_too_long_ends_the_file(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(b"short\n" + b"x" * 40 + b"\nshort\n")
    with path.open("rb") as stream:
        first, second = iter_lines(stream, max_bytes=32)
    assert first == (1, "short\n")
    number, error = second
    assert number == 2
    assert isinstance(error, RowError)
    assert error.ends_file
    assert "longer" in error.message


@pytest.mark.parametrize(
    "value",
    [
        datetime(2026, 1, 2),
        b"bytes",
        float("nan"),
        {"when": datetime(2026, 1, 2)},
        [b"bytes"],
        {"score": float("inf")},
    ],
)
def test_a_reference_that_is_not_text_is_the_error_of_its_row(tmp_path: Path, value: Any) -> None:
    table = pyarrow.table({"prompt": ["p"], "reference": [value]})
    file = write_file(tmp_path, "a.parquet", parquet(table))
    with pytest.raises(UserError) as caught:
        read_samples([file], job("GRPO", grpo={"rewards": [{"type": "exactMatch"}]}))
    assert (caught.value.failure.reason, caught.value.failure.line) == ("WrongType", 1)


@pytest.mark.parametrize(
    ("value", "text"),
    [("8", "8"), (8, "8"), (1.5, "1.5"), (Decimal("1.50"), "1.50"), ([1, 2], "[1, 2]")],
)
def test_numbers_and_json_are_references(tmp_path: Path, value: Any, text: str) -> None:
    table = pyarrow.table({"prompt": ["p"], "reference": [value]})
    file = write_file(tmp_path, "a.parquet", parquet(table))
    _, (sample,) = read_samples([file], job("GRPO", grpo={"rewards": [{"type": "exactMatch"}]}))
    assert sample.to_json()["reference"] == text
