"""Log lines: a constant sentence that can be searched for, and its fields, as text or JSON."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from finetune_trainer.runtime.logs import LOG_FORMAT_ENV, TextFormatter


def line(message: str, level: int = logging.INFO, error: Any = None, **fields: Any) -> str:
    """The text of a record that a logger makes of a call with these `extra` fields."""
    record = logging.getLogger("finetune").makeRecord(
        "finetune", level, __file__, 1, message, (), error, extra=fields
    )
    return TextFormatter().format(record)


def test_a_line_has_time_level_sentence_and_fields() -> None:
    text = line("Checkpoint saved", step=12, waited_seconds=0.25, file="/job/step-12")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO Checkpoint saved "
        r"step=12 waited_seconds=0\.25 file=/job/step-12",
        text,
    )


def test_a_line_without_fields_ends_with_the_sentence() -> None:
    assert line("Stop requested", logging.WARNING).endswith(" WARNING Stop requested")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("two words", '"two words"'),
        ("", '""'),
        ("a=b", '"a=b"'),
        ('say "x"', '"say \\"x\\""'),
        ("first\nsecond", '"first\\nsecond"'),
        ("ümlaut", "ümlaut"),
        (1 / 3, "0.333333"),
        (12345678901, "12345678901"),
        (True, "true"),
        (None, "null"),
        ({"imports": 1.5}, '"{\\"imports\\": 1.5}"'),
        (OSError(28, "No space"), '"[Errno 28] No space"'),
    ],
)
def test_a_value_cannot_be_confused_with_what_follows_it(value: object, shown: str) -> None:
    assert line("Sentence", value=value, after=1).endswith(f" Sentence value={shown} after=1")


def test_a_traceback_follows_the_line() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        text = line("Stage failed", logging.ERROR, sys.exc_info(), attempt=2)
    first, *rest = text.split("\n")
    assert first.endswith(" ERROR Stage failed attempt=2")
    assert rest[-1] == "ValueError: broken"


LOGS_ONE_LINE = """
import logging
from finetune_trainer.runtime.logs import configure_logging
configure_logging()
log = logging.getLogger("finetune")
try:
    raise ValueError("broken")
except ValueError:
    log.exception("Stage failed", extra={"attempt": 2, "level": "own", "file": "a b"})
"""


def test_json_lines_have_the_fields_as_members() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOGS_ONE_LINE],
        env={**os.environ, LOG_FORMAT_ENV: "json"},
        capture_output=True,
        text=True,
        check=True,
    )
    (text,) = done.stderr.splitlines()
    found = json.loads(text)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert found.pop("exception").endswith("ValueError: broken")
    assert found == {
        "level": "error",
        "message": "Stage failed",
        "attempt": 2,
        "level_": "own",
        "file": "a b",
    }
