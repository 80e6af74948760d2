"""Log lines that a machine can read and a person can follow.

Each line of a reconcile carries its key and a number that is the same for all lines of that one
run. Objects are never logged, so neither are their secrets.
"""

import itertools
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

from finetune_operator.decision import Key

TOLD_BY_US = (
    "kopf._cogs.clients",
    "kopf._core.reactor.orchestration",
    "kopf._core.reactor.running",
)
"""Loggers of kopf that tell each failed try of each watch, the last with a traceback. The engine
says in one line when a watch has failed for good, and so do the Lease and the lists meanwhile."""

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
    """Log to stderr as json or text; libraries only when something is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("finetune_operator").setLevel(level.upper())
    # kopf warns of every optional thing that this operator does not use.
    logging.getLogger("kopf").setLevel(logging.ERROR)
    for told in TOLD_BY_US:
        logging.getLogger(told).setLevel(logging.CRITICAL)


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if trace := _trace.get():
            key, number = trace
            line |= {"kind": key.kind, "namespace": key.namespace, "name": key.name}
            line["reconcile"] = number
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """The same for people."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        where = ""
        if trace := _trace.get():
            key, number = trace
            where = f" [{key.kind} {key.namespace}/{key.name} #{number}]"
        text = f"{at} {record.levelname:<7}{where} {record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text
