"""Log lines: a constant sentence that can be searched for, and fields.

Call sites pass the fields with logging's `extra`. Every line of a reconcile also carries its key
and a number that is the same for all lines of that one run. Objects are never logged, so neither
are the secrets in them. What is counted or measured instead of logged is in `metrics`.
"""

import itertools
import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from finetune_operator.decision import Key

DUPLICATE_LOGGERS = (
    "kopf._cogs.clients",
    "kopf._core.reactor.orchestration",
    "kopf._core.reactor.running",
)
"""Loggers of kopf that report each failed attempt of each watch, the last one with a traceback. The
engine logs one line when a watch has failed for good; the Lease and the lists do so meanwhile."""

RECORD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What logging itself puts into a record; every other attribute came with `extra`."""

NEEDS_QUOTES = re.compile(r'[\s"=\\]|^$')

_trace: ContextVar[tuple[Key, int] | None] = ContextVar("trace", default=None)
_numbers = itertools.count(1)


@contextmanager
def tracing(key: Key) -> Iterator[None]:
    """Lines logged inside belong to one reconcile of this key."""
    token = _trace.set((key, next(_numbers)))
    try:
        yield
    finally:
        _trace.reset(token)


def configure(style: str, level: str) -> None:
    """Log to stderr as json or text; libraries log warnings and errors only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("finetune_operator").setLevel(level.upper())
    # kopf warns about every optional feature that this operator does not use.
    logging.getLogger("kopf").setLevel(logging.ERROR)
    for name in DUPLICATE_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)


class JsonFormatter(logging.Formatter):
    """One JSON object per line; the fields are its members."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=_plain)


class TextFormatter(logging.Formatter):
    """`<time> <level> <sentence>  key=value key="with spaces"`; a traceback follows below."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        text = f"{at}Z {record.levelname:<8} {record.getMessage()}"
        if fields := _fields(record):
            text += "  " + " ".join(f"{name}={_quoted(value)}" for name, value in fields.items())
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    """The key that is reconciled, then what came with `extra`; a name that has another meaning
    already gets an underscore."""
    fields: dict[str, Any] = {}
    if trace := _trace.get():
        key, number = trace
        fields |= {"kind": key.kind, "namespace": key.namespace, "name": key.name}
        fields["reconcile"] = number
    taken = {"time", "level", "logger", "message", "exception", *fields}
    for name, value in vars(record).items():
        if name not in RECORD_ATTRIBUTES:
            fields[f"{name}_" if name in taken else name] = value
    return fields


def _plain(value: object) -> str:
    return repr(value) if isinstance(value, BaseException) else str(value)


def _quoted(value: object) -> str:
    if value is None or isinstance(value, int | float | Mapping | list | tuple):
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_plain)
    else:
        text = _plain(value)
    if NEEDS_QUOTES.search(text) or not text.isprintable():
        return json.dumps(text, ensure_ascii=not text.isprintable())
    return text
