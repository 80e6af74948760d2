"""Log lines of the trainer's processes: a constant sentence with fields, as text or JSON.

A caller gives the fields as `extra`: `log.info("Stage ended", extra={"outcome": "Succeeded"})`. The
sentence never changes, so it can be searched for, and the fields can be parsed.
FINETUNE_LOG_FORMAT=json makes each line a JSON object; the default is text with key=value pairs.
"""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any

LOG_FORMAT_ENV = "FINETUNE_LOG_FORMAT"

_OWN_ATTRIBUTES = {*vars(logging.makeLogRecord({})), "message", "asctime"}
"""What every log record has; any other attribute came as a field."""


class TextFormatter(logging.Formatter):
    """`time level sentence key=value ...`, and the traceback below it where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        fields = [f"{name}={_format_value(value)}" for name, value in _fields(record).items()]
        text = " ".join([_time(record), record.levelname, record.getMessage(), *fields])
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


class JsonFormatter(logging.Formatter):
    """One JSON object per line; the fields are its members, after time, level and message."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _time(record), "level": record.levelname.lower()}
        line |= {"message": record.getMessage()}
        line |= {f"{name}_" if name in line else name: v for name, v in _fields(record).items()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logging() -> None:
    """Log to stderr from level INFO on, unless the process has configured its logging already.

    Libraries log from WARNING on: in their INFO lines are URLs with signatures that open a file.
    """
    handler = logging.StreamHandler(sys.stderr)
    is_json = os.environ.get(LOG_FORMAT_ENV) == "json"
    handler.setFormatter(JsonFormatter() if is_json else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("finetune").setLevel(logging.INFO)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _OWN_ATTRIBUTES}


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    return at.replace("+00:00", "Z")


def _format_value(value: object) -> str:
    """A value without spaces, quotes, equals signs or line breaks, or as a JSON string."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, bool | dict | list | tuple):
        value = json.dumps(value, ensure_ascii=False, default=str)
    text = str(value)
    is_plain = text.isprintable() and not set(text) & {" ", '"', "="}
    return text if text and is_plain else json.dumps(text, ensure_ascii=False)
