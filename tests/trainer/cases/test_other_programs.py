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
