"""Values as pandas, Spark, compressors and spreadsheets write them: read as meant, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.rows import read, read_failure, role_content

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


@pytest.mark.parametrize("begin", ["", "\ufeff"])
@pytest.mark.parametrize(("name", "comma"), [("a.csv", ","), ("a.tsv", "\t")])
def test_the_column_names_of_a_second_file_are_no_row(
    tmp_path: Path, name: str, comma: str, begin: str
) -> None:
    file = f"{begin}prompt{comma}completion\nhi{comma}yo\n"
    failure = read_failure(tmp_path, name, file * 2)
    assert (failure.reason, failure.line) == ("BrokenRow", 3)
    policy = {"policy": "Skip", "max": "50%"}
    assert len(read(tmp_path, name, file * 2, invalidRows=policy)) == 2


def test_a_word_that_is_the_name_of_the_only_column_is_a_row(tmp_path: Path) -> None:
    samples = read(tmp_path, "a.csv", "text\nsome\ntext\n", objective="Completion")
    assert [sample.text for sample in samples] == ["some", "text"]
