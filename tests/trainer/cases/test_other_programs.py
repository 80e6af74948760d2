"""Values as pandas, Spark, compressors and spreadsheets write them: read as meant, or refused."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from tests.trainer.rows import json_lines, read, read_failure, role_content

NUMBERS: dict[str, Any] = {"objective": "GRPO", "grpo": {"rewards": [{"type": "exactMatch"}]}}
QUESTION = "[{'content': 'hi', 'role': 'user'}]"
ANSWER = "[{'role': 'assistant', 'content': \"it's\"}]"
ARRAY = "[{'content': 'hi', 'role': 'user'}\n {'content': 'yo', 'role': 'assistant'}]"


@pytest.mark.parametrize(
    ("objective", "columns", "cells"),
    [
        ("SFT", "messages", (ARRAY,)),
        ("SFT", "messages", (f"array({ARRAY}, dtype=object)",)),
        ("SFT", "prompt,completion", (QUESTION, ANSWER)),
        ("SFT", "prompt,completion", ("hi", ANSWER)),
        ("DPO", "chosen,rejected", (QUESTION, ANSWER)),
        ("DPO", "prompt,chosen,rejected", ("hi", "yo", ANSWER)),
        ("KTO", "prompt,completion,label", (QUESTION, "yo", "true")),
        ("GRPO", "prompt,answer", (QUESTION, "yo")),
    ],
)
def test_conversations_that_pandas_wrote_as_python_are_refused(
    tmp_path: Path, objective: str, columns: str, cells: tuple[str, ...]
) -> None:
    quoted = ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)
    fields = NUMBERS if objective == "GRPO" else {"objective": objective}
    failure = read_failure(tmp_path, "a.csv", f"{columns}\n{quoted}\n", **fields)
    assert (failure.reason, failure.line) == ("WrongType", 2)
    assert "json.dumps" in str(failure.remedy)


def test_python_in_an_answer_stays_text(tmp_path: Path) -> None:
    code = "messages = [{'role': 'user', 'content': 'hi'}]"
    (sample,) = read(tmp_path, "a.csv", f'prompt,completion\nwrite it,"{code}"\n')
    assert role_content(sample.turns)[-1] == ("assistant", code)


@pytest.mark.parametrize("begin", ["prompt", "\ufeffprompt", '\ufeff"prompt"', '"prompt"'])
@pytest.mark.parametrize(("name", "comma"), [("a.csv", ","), ("a.tsv", "\t")])
def test_the_column_names_of_a_second_file_are_no_row(
    tmp_path: Path, name: str, comma: str, begin: str
) -> None:
    file = f"{begin}{comma}completion\nhi{comma}yo\n"
    failure = read_failure(tmp_path, name, file * 2)
    assert (failure.reason, failure.line) == ("BrokenRow", 3)
    policy = {"policy": "Skip", "max": "50%"}
    assert len(read(tmp_path, name, file * 2, invalidRows=policy)) == 2


def test_a_byte_order_mark_may_begin_each_of_joined_files(tmp_path: Path) -> None:
    file = "\ufeff" + json_lines({"prompt": "p", "completion": "c"})
    assert len(read(tmp_path, "a.jsonl", file * 2)) == 2
    assert len(read(tmp_path, "a.json", file * 2)) == 2


def test_a_word_that_is_the_name_of_the_only_column_is_a_row(tmp_path: Path) -> None:
    samples = read(tmp_path, "a.csv", "text\nsome\ntext\n", objective="Completion")
    assert [sample.text for sample in samples] == ["some", "text"]


def parquet(**columns: Any) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("value", "kind", "reference"),
    [
        (0.1, "float32", "0.1"),
        (72.0, "float32", "72"),
        (72.0, "float64", "72"),
        (-3.0, "float64", "-3"),
        (0.25, "float64", "0.25"),
        (1e300, "float64", "1e+300"),
    ],
)
def test_a_reference_has_the_digits_that_were_written(
    tmp_path: Path, value: float, kind: str, reference: str
) -> None:
    answers = pyarrow.array([value, None], getattr(pyarrow, kind)())
    rules = {"objective": "GRPO", "grpo": {"rewards": [{"type": "length"}]}}
    samples = read(tmp_path, "a.parquet", parquet(prompt=["p", "q"], answer=answers), **rules)
    assert [sample.reference for sample in samples] == [reference, None]


def test_short_floats_keep_their_digits_at_any_depth(tmp_path: Path) -> None:
    arguments = pyarrow.struct([("x", pyarrow.list_(pyarrow.float32()))])
    function = pyarrow.struct([("name", pyarrow.string()), ("arguments", arguments)])
    turn = pyarrow.struct(
        [("role", pyarrow.string()), ("content", pyarrow.string()), ("function_call", function)]
    )
    call = {"name": "f", "arguments": {"x": [0.1, 2.5]}}
    turns = [
        {"role": "user", "content": "p"},
        {"role": "assistant", "function_call": call},
    ]
    content = parquet(messages=pyarrow.array([turns], pyarrow.list_(turn)))
    (sample,) = read(tmp_path, "a.parquet", content)
    assert sample.turns[1].tool_calls[0]["function"] == call


def test_maps_are_objects(tmp_path: Path) -> None:
    turns = [[("role", "user"), ("content", "p")], [("role", "assistant"), ("content", "c")]]
    kind = pyarrow.list_(pyarrow.map_(pyarrow.string(), pyarrow.string()))
    (sample,) = read(tmp_path, "a.parquet", parquet(messages=pyarrow.array([turns], kind)))
    assert role_content(sample.turns) == [("user", "p"), ("assistant", "c")]
    twice = pyarrow.array([[[("role", "user"), ("role", "assistant")]]], kind)
    failure = read_failure(tmp_path, "b.parquet", parquet(messages=twice))
    assert (failure.reason, failure.line) == ("BrokenRow", 1)


@pytest.mark.parametrize("reference", ["?!", "🙂"])
def test_a_reference_without_a_word_is_refused_where_words_are_compared(
    tmp_path: Path, reference: str
) -> None:
    rules = {"objective": "GRPO", "grpo": {"rewards": [{"type": "rougeL"}]}}
    content = parquet(prompt=["p"], answer=[reference])
    failure = read_failure(tmp_path, "a.parquet", content, **rules)
    assert (failure.reason, failure.line) == ("ReferenceMissing", 1)
    assert read(tmp_path, "a.parquet", content, **NUMBERS)[0].reference == reference


def test_a_date_is_not_called_a_number(tmp_path: Path) -> None:
    content = parquet(prompt=[datetime.date(2020, 1, 1)], completion=["c"])
    assert "holds a date, not a text" in read_failure(tmp_path, "a.parquet", content).message


def test_rows_after_the_end_of_a_stream_are_not_lost(tmp_path: Path) -> None:
    sink = pyarrow.BufferOutputStream()
    table = pyarrow.table({"prompt": ["p", "q"], "completion": ["c", "d"]})
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    stream = sink.getvalue().to_pybytes()
    assert len(read(tmp_path, "a.arrow", stream)) == 2
    failure = read_failure(tmp_path, "a.arrow", stream * 2)
    assert (failure.reason, failure.line) == ("BrokenRow", 3)
    assert "goes on after the end" in failure.message


def test_frames_without_data_are_skipped(tmp_path: Path) -> None:
    rows = [json_lines({"prompt": f"p{number}", "completion": "c"}) for number in range(2)]
    frames = [pyarrow.Codec("zstd").compress(row.encode(), asbytes=True) for row in rows]
    skippable = b"\x5a\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"size"
    content = skippable + frames[0] + skippable + frames[1]
    assert len(read(tmp_path, "a.jsonl.zst", content)) == 2


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    "value",
    [
        PNG,
        [PNG],
        {"bytes": b"any", "path": None},
        [{"bytes": b"any", "path": "a.tif"}],
        {"array": [0.5, 0.1], "sampling_rate": 16000, "path": None},
    ],
)
def test_media_are_found_under_any_name(tmp_path: Path, value: Any) -> None:
    pair = {"prompt": ["p"], "completion": ["c"]}
    content = parquet(**pair, scan=pyarrow.array([value]))
    failure = read_failure(tmp_path, "a.parquet", content)
    assert (failure.reason, "'scan'" in failure.message) == ("UnusableColumn", True)
    assert read(tmp_path, "a.parquet", content, ignoreColumns=["scan"])
    turns = [{"role": "user", "content": "p", "scan": value}, {"role": "assistant", "content": "c"}]
    content = parquet(messages=pyarrow.array([turns]))
    failure = read_failure(tmp_path, "a.parquet", content)
    assert (failure.reason, "'scan'" in failure.message) == ("BadConversation", True)


def test_other_bytes_and_paths_are_no_media(tmp_path: Path) -> None:
    columns = {"sha": pyarrow.array([b"\x00\x01"]), "meta": pyarrow.array([{"path": "a.py"}])}
    assert read(tmp_path, "a.parquet", parquet(prompt=["p"], completion=["c"], **columns))
