"""Parses files of rows: JSON Lines, JSON, CSV and Parquet, each record with its exact line.

Text is read as bytes and split at line feeds before it is decoded, so that an error about a broken
character has its line, and characters that merely look like line ends to Unicode do not shift the
count. In a .parquet file the "line" is the number of the row. The readers of text are our own,
because Arrow's give no exact line: see docs/decisions/0009-libraries.md.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from finetune_trainer.data.row_errors import RowError, RowErrors
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.dataset_files import DataFile

_GZIP_MAGIC = b"\x1f\x8b"
_PARQUET_BATCH = 1024
_MAX_CELL_BYTES = 1 << 30


@dataclass(frozen=True)
class Record:
    """One row as the file has it: columns and values, not yet checked."""

    file: str
    line: int
    """Line in the file, counted from 1; in a .parquet file the row."""
    values: dict[str, Any]


def iter_records(files: list[DataFile], errors: RowErrors) -> Iterator[Record]:
    """Every record of every file; rows that cannot be parsed are added to `errors`."""
    for file in files:
        for line, row in _parse_file(file):
            if isinstance(row, RowError):
                errors.add(row, file.name, line)
            elif isinstance(row, dict):
                yield Record(file.name, line, row)
            else:
                errors.add(_not_an_object(row), file.name, line)


def _parse_file(file: DataFile) -> Iterator[tuple[int, Any]]:
    name = file.name.lower().removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            yield from _parse_parquet(file.path)
            return
        with _open(file.path) as stream:
            if name.endswith(".csv"):
                yield from _parse_csv(stream)
            elif _first_byte(file.path) == b"[":
                if name.endswith(".json"):
                    yield from _parse_json_list(stream.read())
                else:
                    yield 1, _list_in_json_lines()
            else:
                yield from _parse_json_lines(stream)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _broken_file(file, f"its compression is broken ({error})") from None


def _open(path: Path) -> IO[bytes]:
    # A server may have decompressed a .gz in transit, so the first bytes decide, not the name.
    with path.open("rb") as file:
        is_compressed = file.read(2) == _GZIP_MAGIC
    return gzip.open(path) if is_compressed else path.open("rb")  # type: ignore[return-value]


def _first_byte(path: Path) -> bytes:
    with _open(path) as stream:
        while chunk := stream.read(4096):
            if stripped := chunk.removeprefix(b"\xef\xbb\xbf").lstrip():
                return stripped[:1]
    return b""


def _parse_json_lines(stream: IO[bytes]) -> Iterator[tuple[int, Any]]:
    for number, raw in enumerate(stream, 1):
        text = _decode(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw)
        if isinstance(text, RowError):
            yield number, text
        elif text.strip():
            yield number, _parse_json(text)


def _parse_json(text: str) -> Any:
    try:
        # Without its line break, which the decoder would count as a line of its own.
        return json.loads(text.rstrip("\r\n"), object_pairs_hook=_make_object)
    except _DuplicateKey as error:
        return _duplicate_column(str(error))
    except json.JSONDecodeError as error:
        return RowError(
            "BrokenRow",
            f"not valid JSON at column {error.colno}: {error.msg}",
            "Write one complete JSON object per line.",
        )
    except (ValueError, RecursionError):
        return RowError(
            "BrokenRow", "a number is too long, or it is nested too deeply", "Simplify it."
        )


class _DuplicateKey(ValueError):
    """A JSON object has a key twice; the message is the key."""


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKey(next(name for name in names if names.count(name) > 1))
    return values


def _duplicate_column(name: str) -> RowError:
    return RowError(
        "BrokenRow",
        f"the column {name!r} appears twice, and only one of the two could be used",
        "Give every column a name of its own.",
    )


def _list_in_json_lines() -> RowError:
    return RowError(
        "BrokenRow",
        "the file holds one JSON list, not a JSON object on every line",
        "Rename it to .json, or write one complete JSON object per line.",
    )


def _decode(raw: bytes) -> str | RowError:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        return RowError(
            "NotUTF8",
            f"byte {error.start + 1} of the line is not UTF-8",
            "Save the file as UTF-8.",
        )


def _parse_json_list(raw: bytes) -> Iterator[tuple[int, Any]]:
    """The elements of one JSON list, decoded one by one so that each has a line."""
    text = _decode(raw.removeprefix(b"\xef\xbb\xbf"))
    if isinstance(text, RowError):
        yield raw.count(b"\n", 0, _find_undecodable_byte(raw)) + 1, text
        return
    decoder = json.JSONDecoder(object_pairs_hook=_make_object)
    position, line, counted = _skip_whitespace(text, text.index("[") + 1), 1, 0
    while text[position : position + 1] != "]":
        line += text.count("\n", counted, position)
        counted = position
        try:
            value, end = decoder.raw_decode(text, position)
            following = _skip_whitespace(text, end)
            if text[following : following + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, following)
        except (ValueError, RecursionError) as error:
            yield _broken_list_error(error, line)
            return
        yield line, value
        has_next = text[following] == ","
        position = _skip_whitespace(text, following + 1) if has_next else following


def _find_undecodable_byte(raw: bytes) -> int:
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return error.start
    return 0


def _skip_whitespace(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _broken_list_error(error: Exception, line: int) -> tuple[int, RowError]:
    remedy = "Write one JSON list of objects, or one object per line in a .jsonl file."
    if isinstance(error, _DuplicateKey):
        return line, _duplicate_column(str(error))
    if isinstance(error, json.JSONDecodeError):
        message = f"not valid JSON at column {error.colno}: {error.msg}"
        return error.lineno, RowError("BrokenRow", message, remedy)
    return line, RowError("BrokenRow", "the element cannot be read", remedy)


def _parse_csv(stream: IO[bytes]) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(_MAX_CELL_BYTES)
    lines = _NumberedLines(stream)
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    while True:
        start = lines.number + 1
        try:
            cells = next(reader, None)
        except _UndecodableLine as error:
            yield lines.number, error.error
            continue
        except csv.Error as error:
            remedy = "Quote cells that hold commas, quotes or line ends, and double inner quotes."
            yield start, RowError("BrokenRow", f"not valid CSV: {error}", remedy)
            return
        if cells is None:
            return
        if header is None:
            header = [cell.strip() for cell in cells]
            if duplicates := [name for name in header if name and header.count(name) > 1]:
                yield start, _duplicate_column(duplicates[0])
                return
        elif cells:
            yield start, _make_csv_record(header, cells)


def _make_csv_record(header: list[str], cells: list[str]) -> dict[str, str] | RowError:
    if len(cells) == len(header):
        return dict(zip(header, cells, strict=True))
    return RowError(
        "BrokenRow",
        f"{len(cells)} cells under {len(header)} column names",
        "Give every row as many cells as the first, and quote cells that hold commas.",
    )


class _UndecodableLine(Exception):
    def __init__(self, error: RowError) -> None:
        super().__init__(error.message)
        self.error = error


class _NumberedLines:
    """Decoded lines for the csv module, whose own count of lines differs within quotes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw = next(iter(self._stream))
        self.number += 1
        text = _decode(raw.removeprefix(b"\xef\xbb\xbf") if self.number == 1 else raw)
        if isinstance(text, RowError):
            raise _UndecodableLine(text)
        return text


def _parse_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(path)
        for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
            for record in batch.to_pylist():
                number += 1
                yield number, record
    except UnicodeDecodeError:
        yield number + 1, RowError("NotUTF8", "a text is not UTF-8", "Save the texts as UTF-8.")
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        text = str(error).split("\n")[0][:200]
        yield number + 1, RowError("BrokenRow", f"not valid Parquet: {text}", "Write it again.")


def _not_an_object(record: Any) -> RowError:
    kind = {list: "a list", str: "a text", type(None): "null"}.get(type(record), "a number")
    return RowError(
        "WrongType",
        f"the row is {kind}, not an object with named columns",
        'Write rows as {"prompt": "...", "completion": "..."}.',
    )


def _broken_file(file: DataFile, why: str) -> UserError:
    return UserError(
        "BrokenFile", f"{file.name} cannot be read: {why}.", "Upload it again.", file=file.name
    )
