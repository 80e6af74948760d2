"""Log lines: a constant sentence that can be searched for, then its fields as key=value."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

import pytest
from finetune_trainer.runtime.logs import TextFormatter


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
