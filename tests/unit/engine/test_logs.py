"""A log line is a constant sentence and fields, for people and for machines."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from finetune_operator.decision import Key
from finetune_operator.engine.logs import JsonFormatter, TextFormatter, tracing

KEY = Key("FineTuneJob", "team-a", "support-bot")
Output = Callable[[], str]


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    logger = logging.Logger("finetune_operator.test")
    yield logger
    logger.handlers.clear()


def attach(logger: logging.Logger, formatter: logging.Formatter) -> Output:
    """Collect what the logger prints with this formatter."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(formatter)
    logger.addHandler(handler)
    return written.getvalue


@pytest.fixture
def text(log: logging.Logger) -> Output:
    return attach(log, TextFormatter())


@pytest.fixture
def lines(log: logging.Logger) -> Callable[[], list[dict[str, Any]]]:
    written = attach(log, JsonFormatter())
    return lambda: [json.loads(line) for line in written().splitlines()]


def test_text_shows_the_fields_after_the_sentence(log: logging.Logger, text: Output) -> None:
    log.warning(
        "Reconcile failed, retrying", extra={"delay_seconds": 0.2, "error": "no answer within 15 s"}
    )
    at, level, rest = text().split(maxsplit=2)
    assert level == "WARNING"
    assert at.startswith("20")
    assert at.endswith("Z")
    assert rest == ('Reconcile failed, retrying  delay_seconds=0.2 error="no answer within 15 s"\n')


def test_text_without_fields_is_the_sentence(log: logging.Logger, text: Output) -> None:
    log.info("Stopped")
    assert text().endswith("INFO     Stopped\n")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain-value/1.2:3", "plain-value/1.2:3"),
        ("", '""'),
        ("two words", '"two words"'),
        ('a "quoted" word', r'"a \"quoted\" word"'),
        ("a=b", '"a=b"'),
        (r"back\slash", r'"back\\slash"'),
        ("two\nlines", r'"two\nlines"'),
        ("one\x1b[31m\u2028line", r'"one\u001b[31m\u2028line"'),
        ("größe", "größe"),
        (3, "3"),
        (True, "true"),
        (None, "null"),
        (["Job", "Pod"], r'"[\"Job\",\"Pod\"]"'),
        ({"a": 1}, r'"{\"a\":1}"'),
        (KeyError("x"), "KeyError('x')"),
        (Path("/a/b"), "/a/b"),
    ],
)
def test_text_keeps_a_value_on_one_line_and_apart_from_the_next(
    log: logging.Logger, text: Output, value: object, shown: str
) -> None:
    log.info("Sentence", extra={"before": 1, "value": value, "after": 2})
    assert text().endswith(f"Sentence  before=1 value={shown} after=2\n")


def test_json_has_the_fields_as_members(
    log: logging.Logger, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    log.warning(
        "Reconcile failed, retrying",
        extra={
            "delay_seconds": 0.2,
            "error": 'two\n"lines"',
            "kinds": ["Job"],
            "cause": OSError(5),
        },
    )
    [line] = lines()
    assert line.pop("time")
    assert line == {
        "level": "warning",
        "logger": "finetune_operator.test",
        "message": "Reconcile failed, retrying",
        "delay_seconds": 0.2,
        "error": 'two\n"lines"',
        "kinds": ["Job"],
        "cause": "OSError(5)",
    }


def test_the_key_that_is_reconciled_is_fields_of_its_lines(
    log: logging.Logger, text: Output, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    with tracing(KEY):
        log.info("Inside", extra={"step": 1})
        log.info("Inside too")
    with tracing(KEY):
        log.info("Another reconcile")
    log.info("Outside")

    first, second, third, last = lines()
    key = {"kind": "FineTuneJob", "namespace": "team-a", "name": "support-bot"}
    assert {name: first.get(name) for name in key} == key
    assert first["reconcile"] == second["reconcile"]
    assert third["reconcile"] > first["reconcile"]
    assert "kind" not in last
    number = first["reconcile"]
    shown = f"kind=FineTuneJob namespace=team-a name=support-bot reconcile={number} step=1"
    assert f"Inside  {shown}\n" in text()


def test_a_field_overwrites_neither_the_line_nor_the_key(
    log: logging.Logger, text: Output, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    with tracing(KEY):
        log.info("Sentence", extra={"level": "deep", "time": 7, "kind": "Service"})
    [line] = lines()
    assert (line["level"], line["kind"]) == ("info", "FineTuneJob")
    assert line["time"] != 7
    assert (line["level_"], line["time_"], line["kind_"]) == ("deep", 7, "Service")
    assert "level_=deep time_=7 kind_=Service" in text()


def test_attributes_of_every_log_record_are_no_fields(
    log: logging.Logger, text: Output, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    with pytest.raises(KeyError, match="overwrite 'name'"):
        log.info("Refused by logging itself", extra={"name": "other"})
    log.info("Library line with %s", "arguments")
    [line] = lines()
    assert line.keys() == {"time", "level", "logger", "message"}
    assert text().endswith("Library line with arguments\n")


def test_an_exception_is_shown_with_its_fields(
    log: logging.Logger, text: Output, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("Reconcile raised an exception, retrying", extra={"delay_seconds": 1.5})
    [line] = lines()
    assert line["delay_seconds"] == 1.5
    assert line["exception"].endswith("ValueError: broken")
    sentence, _, traceback = text().partition("\n")
    assert sentence.endswith("retrying  delay_seconds=1.5")
    assert traceback.startswith("Traceback")
    assert traceback.endswith("ValueError: broken\n")
