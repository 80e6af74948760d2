"""From files to samples: every row error has a file, a line and a remedy."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from finetune_api.finetunejob import Columns
from finetune_trainer.data.read_records import read_samples
from finetune_trainer.data.samples import MessagesSample
from finetune_trainer.runtime.errors import UserError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.rows import job, json_lines, read, read_failure, role_content, write_file

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8)


def role_contents(samples: list[MessagesSample]) -> list[list[tuple[str, str]]]:
    return [role_content(sample.turns) for sample in samples]


PAIR = {"prompt": "p", "completion": "c"}
AS_TURNS = [("user", "p"), ("assistant", "c")]


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        {"instruction": "p", "output": "c"},
        {"instruction": "p", "input": "", "output": "c"},
        {"instruction": "p", "response": "c", "input": None},
        {"question": "p", "answer": "c"},
        {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}]},
        {"conversations": [{"from": "human", "value": "p"}, {"from": "gpt", "value": "c"}]},
        {
            "messages": [
                {"role": "system", "content": " "},
                {"role": "user", "content": [{"type": "text", "text": "p"}]},
                {"role": "assistant", "content": "c", "tool_calls": None},
            ]
        },
    ],
)
def test_the_usual_columns_are_understood(tmp_path: Path, row: dict[str, Any]) -> None:
    assert role_contents(read(tmp_path, "a.jsonl", json_lines(row))) == [AS_TURNS]


def test_the_input_is_appended_and_the_system_turn_comes_first(tmp_path: Path) -> None:
    row = {"instruction": "Add", "input": "1 2", "output": "3", "system": "Be brief"}
    assert role_contents(read(tmp_path, "a.jsonl", json_lines(row))) == [
        [("system", "Be brief"), ("user", "Add\n\n1 2"), ("assistant", "3")]
    ]


def test_the_columns_of_the_job_override_the_usual_names(tmp_path: Path) -> None:
    row = {"prompt": "no", "completion": "no", "ask": "p", "tell": "c"}
    columns = Columns(prompt="ask", completion="tell")
    assert role_contents(read(tmp_path, "a.jsonl", json_lines(row), columns=columns)) == [AS_TURNS]


@given(pairs=PAIRS)
@settings(max_examples=30, deadline=None)
def test_every_file_format_gives_the_same_samples(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("kinds")
    rows = [{"prompt": p, "completion": c} for p, c in pairs]
    expected = [[("user", p), ("assistant", c)] for p, c in pairs]
    jsonl = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert role_contents(read(folder, "a.jsonl", jsonl)) == expected
    assert role_contents(read(folder, "a.jsonl.gz", gzip.compress(jsonl.encode()))) == expected
    assert role_contents(read(folder, "a.json", json.dumps(rows, indent=1))) == expected
    assert role_contents(read(folder, "b.json", json_lines(*rows))) == expected
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "a.parquet")
    content = (folder / "a.parquet").read_bytes()
    assert role_contents(read(folder, "a.parquet", content)) == expected


CELLS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\r\x00"), min_size=1
).filter(str.strip)


@given(pairs=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_csv_keeps_commas_quotes_and_line_ends(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerows([("prompt", "completion"), *pairs])
    rows = read(tmp_path_factory.mktemp("csv"), "a.csv", text.getvalue())
    assert role_contents(rows) == [[("user", p), ("assistant", c)] for p, c in pairs]


@given(junk=st.binary(max_size=300), kind=st.sampled_from(["jsonl", "json", "csv", "parquet"]))
@settings(max_examples=150, deadline=None)
def test_no_content_raises_anything_but_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, kind: str
) -> None:
    folder = tmp_path_factory.mktemp("junk")
    with contextlib.suppress(UserError):
        assert read(folder, f"a.{kind}", junk), "no rows and no error"


def test_samples_have_the_line_of_their_file(tmp_path: Path) -> None:
    jsonl = read(tmp_path, "a.jsonl", f"\n{json_lines(PAIR)}\n\n{json_lines(PAIR)}")
    assert [sample.line for sample in jsonl] == [2, 5]
    table = read(tmp_path, "a.csv", 'prompt,completion\n"one\ntwo",c\nthree,d\n')
    assert [sample.line for sample in table] == [2, 4]
    listed = read(tmp_path, "a.json", json.dumps([PAIR, PAIR], indent=1))
    assert [sample.line for sample in listed] == [2, 6]
    separator = json.dumps({"prompt": "a\u2028b\u0085", "completion": "c"}, ensure_ascii=False)
    unicode_ends = read(tmp_path, "b.jsonl", f"{separator}\n{json_lines(PAIR)}")
    assert [sample.line for sample in unicode_ends] == [1, 2]


def test_files_are_read_in_order_and_an_error_names_the_file(tmp_path: Path) -> None:
    files = [
        write_file(tmp_path, "a.jsonl", json_lines(PAIR)),
        write_file(tmp_path, "b.csv", "prompt,completion\n,c"),
    ]
    with pytest.raises(UserError) as caught:
        read_samples(files, job())
    failure = caught.value.failure
    assert (failure.reason, failure.file, failure.line) == ("EmptyText", "b.csv", 2)


@pytest.mark.parametrize(
    ("content", "reason", "line", "words"),
    [
        (json_lines(PAIR) + '{"prompt": "p" "completion": 1}\n', "BrokenRow", 2, "column 16"),
        (json_lines(PAIR) + '{"prompt": "p"', "BrokenRow", 2, "column 15"),
        (json_lines(PAIR, ["p", "c"]), "WrongType", 2, "a list"),
        (json_lines(PAIR, {"prompt": "p"}), "MissingColumn", 2, "the columns are: prompt"),
        (json_lines(PAIR, {"prompt": "p", "completion": None}), "MissingColumn", 2, "is empty"),
        (json_lines(PAIR, {"prompt": "p", "completion": 7}), "WrongType", 2, "a number"),
        (json_lines(PAIR, {"prompt": "p", "completion": ["c"]}), "WrongType", 2, "a list"),
        (json_lines(PAIR, {"prompt": " \n", "completion": "c"}), "EmptyText", 2, "prompt"),
        (json_lines(PAIR, {"prompt": "p", "completion": ""}), "EmptyText", 2, "completion"),
        (json_lines(PAIR).encode() + b'{"prompt": "\xff"}\n', "NotUTF8", 2, "byte 13"),
        ('{"prompt": "\\ud800", "completion": "c"}', "BrokenRow", 1, "surrogate"),
        (json_lines({"text": "p", "label": 1}), "MissingColumn", 1, "label, text"),
        (json_lines({"prompt": "p"}), "MissingColumn", 1, "other half"),
        ('{"prompt": ' + "[" * 100_000, "BrokenRow", 1, "nested"),
    ],
)
def test_a_broken_row_is_reported_with_its_line(
    tmp_path: Path, content: str | bytes, reason: str, line: int, words: str
) -> None:
    failure = read_failure(tmp_path, "rows.jsonl", content)
    assert (failure.reason, failure.file, failure.line) == (reason, "rows.jsonl", line)
    assert words in failure.message


def turns(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


@pytest.mark.parametrize(
    ("row", "reason", "words"),
    [
        (turns("user"), "BadConversation", "no assistant turn"),
        (turns("user", "assistant", "user"), "BadConversation", "ends with the user"),
        (turns("user", "tool", "assistant"), "BadConversation", "not called"),
        (turns("user", "critic", "assistant"), "BadConversation", "'critic'"),
        (turns("assistant"), "BadConversation", "no user turn"),
        (turns("system", "assistant"), "BadConversation", "no user turn"),
        (turns("user", "system", "assistant"), "BadConversation", "middle"),
        ({"messages": []}, "BadConversation", "no assistant turn"),
        ({"messages": "hello"}, "WrongType", "list of turns"),
        ({"messages": [1]}, "WrongType", "list of turns"),
        ({"messages": [{"role": "user"}]}, "WrongType", "turn 1"),
        ({"messages": [{"role": "user", "content": " "}]}, "EmptyText", "turn 1"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "BadConversation",
            "not text",
        ),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "BadTools",
            "calls tools",
        ),
    ],
)
def test_a_broken_conversation_is_refused(
    tmp_path: Path, row: dict[str, Any], reason: str, words: str
) -> None:
    failure = read_failure(tmp_path, "rows.jsonl", json_lines(turns("user", "assistant"), row))
    assert (failure.reason, failure.line) == (reason, 2)
    assert words in failure.message


def test_named_columns_decide_the_format(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "no"}, {"role": "assistant", "content": "no"}]
    row = {"messages": chat, "prompt": "p", "answer": "c"}
    columns = Columns(prompt="prompt")
    assert role_contents(read(tmp_path, "a.jsonl", json_lines(row), columns=columns)) == [AS_TURNS]
    failure = read_failure(tmp_path, "a.jsonl", json_lines(PAIR), columns=Columns(messages="talk"))
    assert (failure.reason, "'talk'" in failure.message) == ("MissingColumn", True)
    failure = read_failure(tmp_path, "a.jsonl", json_lines(PAIR), columns=Columns(system="role"))
    assert (failure.reason, "'role'" in failure.message) == ("MissingColumn", True)


def test_a_missing_named_column_is_refused(tmp_path: Path) -> None:
    failure = read_failure(tmp_path, "a.jsonl", json_lines(PAIR), columns=Columns(prompt="ask"))
    assert (failure.reason, failure.line) == ("MissingColumn", 1)
    assert "'ask'" in failure.message
    assert "completion, prompt" in failure.message
    failure = read_failure(tmp_path, "a.jsonl", json_lines(PAIR), format="chat")
    assert "'messages' or 'conversations'" in failure.message


def test_the_next_broken_lines_are_listed(tmp_path: Path) -> None:
    failure = read_failure(tmp_path, "a.jsonl", json_lines(PAIR, {}, PAIR, {}, {}))
    assert failure.line == 2
    assert failure.message.endswith("2 more: lines 4, 5.")
    failure = read_failure(tmp_path, "a.jsonl", json_lines(PAIR, *[{}] * 40))
    assert failure.message.endswith("At least 5 more: lines 3, 4, 5, 6, 7.")
    failure = read_failure(tmp_path, "a.jsonl", json_lines(PAIR, {}, {}))
    assert failure.message.endswith("1 more: line 3.")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_an_empty_data_set(tmp_path: Path, name: str, content: str) -> None:
    assert read_failure(tmp_path, name, content).reason == "EmptyDataset"


@pytest.mark.parametrize(("name", "content"), [("a.json", "[]"), ("a.csv", "prompt,completion\n")])
def test_a_file_without_rows_is_an_empty_data_set(tmp_path: Path, name: str, content: str) -> None:
    failure = read_failure(tmp_path, name, content)
    assert (failure.reason, failure.file) == ("EmptyDataset", name)


@pytest.mark.parametrize(
    ("name", "content", "reason", "line"),
    [
        ("a.json", '[\n{"prompt": "p", "completion": "c"},\n{"prompt" "p"}]', "BrokenRow", 3),
        ("a.json", '[\n{"prompt": "p", "completion": "c"}\n', "BrokenRow", 3),
        ("a.json", '{\n "data": []\n}', "BrokenRow", 1),
        ("a.csv", "prompt,completion\na,b\na,b,c\n", "BrokenRow", 3),
        ("a.csv", 'prompt,completion\na,"b\n', "BrokenRow", 2),
        ("a.csv", b"prompt,completion\na,b\na,\xff\n", "NotUTF8", 3),
        ("a.parquet", b"PAR1 but not really PAR1", "BrokenRow", 1),
    ],
)
def test_errors_of_other_file_formats_have_a_line_too(
    tmp_path: Path, name: str, content: str | bytes, reason: str, line: int
) -> None:
    failure = read_failure(tmp_path, name, content)
    assert (failure.reason, failure.file, failure.line) == (reason, name, line)


def test_truncated_compression_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress(
        json_lines(*[{"prompt": str(i), "completion": "c"} for i in range(99)]).encode()
    )
    assert read_failure(tmp_path, "a.jsonl.gz", packed[:-20]).reason == "BrokenFile"


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    assert read(tmp_path, "a.jsonl", b"\xef\xbb\xbf" + json_lines(PAIR).encode())
    assert read(tmp_path, "a.csv", b"\xef\xbb\xbfprompt,completion\na,b\n")
    assert read(tmp_path, "a.json", b"\xef\xbb\xbf" + json.dumps([PAIR]).encode())


def test_a_damaged_parquet_file_is_the_users_error(tmp_path: Path) -> None:
    table = pyarrow.table(
        {"prompt": ["p" * 50] * 5000, "completion": [f"{i}" for i in range(5000)]}
    )
    pyarrow.parquet.write_table(table, tmp_path / "whole.parquet")
    content = bytearray((tmp_path / "whole.parquet").read_bytes())
    middle = len(content) // 3
    content[middle : middle + 200] = bytes(200)
    failure = read_failure(tmp_path, "rows.parquet", bytes(content))
    assert failure.reason == "BrokenRow"
    assert (failure.file, failure.line) == ("rows.parquet", 1)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.jsonl", json_lines(PAIR) + '{"prompt": "p", "prompt": "q", "completion": "c"}\n', 2),
        ("a.json", '[{"prompt": "p", "completion": "c"},\n{"prompt": 1, "prompt": 2}]', 2),
        ("a.csv", "prompt,completion,prompt\np,c,q\n", 1),
    ],
)
def test_a_duplicate_column_is_refused(tmp_path: Path, name: str, content: str, line: int) -> None:
    failure = read_failure(tmp_path, name, content)
    assert failure.reason == "BrokenRow"
    assert failure.line == line
    assert "'prompt' appears twice" in failure.message


@pytest.mark.parametrize("content", ['[{"prompt": "p"}]', '[\n {"prompt": "p"}\n]', " [\n1]"])
def test_a_list_in_a_json_lines_file_is_refused_with_the_remedy(
    tmp_path: Path, content: str
) -> None:
    failure = read_failure(tmp_path, "rows.jsonl", content)
    assert failure.line == 1
    assert "JSON list" in failure.message
    assert failure.remedy is not None
    assert ".json" in failure.remedy


def test_column_names_that_no_status_can_hold_are_still_reported(tmp_path: Path) -> None:
    many = {f"column number {i}": "x" for i in range(2000)}
    assert read_failure(tmp_path, "a.jsonl", json_lines(many)).reason == "MissingColumn"
    assert read_failure(tmp_path, "b.jsonl", '{"\\ud800": "x"}').reason == "MissingColumn"


def test_the_column_of_a_truncated_line_is_its_end(tmp_path: Path) -> None:
    good = '{"prompt": "a", "completion": "b"}\n'
    failure = read_failure(tmp_path, "d.jsonl", good + '{"prompt": "a", "completion": \n' + good)
    assert failure.line == 2
    assert "column 31" in failure.message
