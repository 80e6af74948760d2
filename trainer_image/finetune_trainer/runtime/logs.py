"""Log lines of the trainer's processes: a constant sentence, then its fields as key=value.

A caller gives the fields as `extra`: `log.info("Stage ended", extra={"outcome": "Succeeded"})`. The
sentence never changes, so it can be searched for, and the fields can be parsed.
"""

import json
import logging
import sys
from datetime import UTC, datetime

_OWN_ATTRIBUTES = {*vars(logging.makeLogRecord({})), "message", "asctime"}
"""What every log record has; any other attribute came as a field."""


class TextFormatter(logging.Formatter):
    """`time level sentence key=value ...`, and the traceback below it where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = [
            f"{name}={_format_value(value)}"
            for name, value in vars(record).items()
            if name not in _OWN_ATTRIBUTES
        ]
        time = at.replace("+00:00", "Z")
        text = " ".join([time, record.levelname, record.getMessage(), *fields])
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def configure_logging() -> None:
    """Log to stderr from level INFO on, unless the process has configured its logging already."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _format_value(value: object) -> str:
    """A value without spaces, quotes, equals signs or line breaks, or as a JSON string."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, bool | dict | list | tuple):
        value = json.dumps(value, ensure_ascii=False, default=str)
    text = str(value)
    is_plain = text.isprintable() and not set(text) & {" ", '"', "="}
    return text if text and is_plain else json.dumps(text, ensure_ascii=False)
