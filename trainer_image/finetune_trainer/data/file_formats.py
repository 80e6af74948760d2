"""Parses files of rows, each record with its exact line.

The suffix of the name says what a file holds. In .parquet and .arrow files the "line" is the number
of the row.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from finetune_trainer.data.arrow_formats import parse_arrow, parse_parquet
from finetune_trainer.data.foreign_files import (
    BINARY_SUFFIXES,
    GZIP_MAGIC,
    HEAD_BYTES,
    ZSTD_MAGIC,
    describe_foreign_content,
)
from finetune_trainer.data.json_documents import parse_json_document
from finetune_trainer.data.row_errors import RowError, RowErrors
from finetune_trainer.data.text_formats import (
    NumberedRow,
    parse_csv,
    parse_json,
    parse_json_lines,
    parse_text,
)
from finetune_trainer.data.text_lines import iter_lines
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.dataset_files import DataFile
from finetune_trainer.sources.row_files import format_suffix

_OPEN_OBJECT = re.compile(r'\{(\s*"[^"]*"\s*:\s*[\[{])?')
"""A first line on which an object only begins."""


@dataclass(frozen=True)
class Record:
    """One row as the file has it: columns and values, not yet checked."""

    file: str
    line: int
    """Line in the file, counted from 1; in a .parquet or .arrow file the row."""
    values: dict[str, Any]


def iter_records(files: list[DataFile], errors: RowErrors) -> Iterator[Record]:
    """Every record of every file; rows that cannot be parsed are added to `errors`.

    Raises UserError where a whole file cannot be read.
    """
    for file in files:
        for line, row in _parse_file(file):
            if isinstance(row, RowError):
                errors.add(row, file.name, line)
            elif isinstance(row, dict):
                yield Record(file.name, line, row)
            else:
                errors.add(_not_an_object(row), file.name, line)


def _parse_file(file: DataFile) -> Iterator[NumberedRow]:
    suffix = format_suffix(file.name)
    try:
        _check_content(file, suffix)
        if suffix in BINARY_SUFFIXES:
            yield from parse_parquet(file.path) if suffix == ".parquet" else parse_arrow(file.path)
            return
        with _open(file.path) as stream:
            yield from _parse_text_file(file, suffix, stream)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _broken_compression(file, error) from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise _broken_compression(file, error) from None


def _parse_text_file(file: DataFile, suffix: str, stream: IO[bytes]) -> Iterator[NumberedRow]:
    match suffix:
        case ".csv":
            yield from parse_csv(stream, ",")
        case ".tsv":
            yield from parse_csv(stream, "\t")
        case ".txt":
            yield from parse_text(stream)
        case ".json" if not _is_json_lines(file.path):
            yield from parse_json_document(stream.read(), file.split)
        case ".json":
            yield from parse_json_lines(stream)
        case _:
            first = _first_line(file.path)
            if first.startswith("["):
                yield 1, _not_json_lines("list")
            elif _OPEN_OBJECT.fullmatch(first):
                yield 1, _not_json_lines("object over several lines")
            else:
                yield from parse_json_lines(stream)


def _open(path: Path) -> IO[bytes]:
    # A server may have decompressed a .gz in transit, so the first bytes decide, not the name.
    with path.open("rb") as file:
        head = file.read(len(ZSTD_MAGIC))
    if head.startswith(GZIP_MAGIC):
        return gzip.open(path)  # type: ignore[return-value]
    if head == ZSTD_MAGIC:
        import pyarrow

        compressed = pyarrow.OSFile(str(path))
        return io.BufferedReader(pyarrow.CompressedInputStream(compressed, "zstd"))
    return path.open("rb")


def _check_content(file: DataFile, suffix: str) -> None:
    """Raise UserError where the first bytes are those of something other than rows."""
    with file.path.open("rb") if suffix in BINARY_SUFFIXES else _open(file.path) as stream:
        found = describe_foreign_content(stream.read(HEAD_BYTES), suffix)
    if found:
        what, remedy = found
        raise UserError(
            "NotRows",
            f"{file.name} does not hold rows as its name says: it is {what}.",
            remedy,
            file=file.name,
        )


def _first_line(path: Path) -> str:
    """The first line that is not blank, stripped; empty where it is no text."""
    with _open(path) as stream:
        for _, text in iter_lines(stream):
            if isinstance(text, RowError):
                return ""
            if text.strip():
                return text.strip()
    return ""


def _is_json_lines(path: Path) -> bool:
    """Whether a .json file has an object on its first line, and goes on after it; or is empty."""
    with _open(path) as stream:
        is_first_read = False
        for _, text in iter_lines(stream):
            if isinstance(text, RowError) or text.strip():
                if is_first_read:
                    return True
                if isinstance(text, RowError) or not isinstance(parse_json(text), dict):
                    return False
                is_first_read = True
    return not is_first_read


def _not_json_lines(what: str) -> RowError:
    return RowError(
        "BrokenRow",
        f"the file holds one JSON {what}, not a JSON object on every line",
        "Rename it to .json, or write one complete JSON object per line.",
    ).at_end_of_file()


def _not_an_object(record: Any) -> RowError:
    kind = {list: "a list", str: "a text", type(None): "null"}.get(type(record), "a number")
    return RowError(
        "WrongType",
        f"the row is {kind}, not an object with named columns",
        'Write rows as {"prompt": "...", "completion": "..."}.',
    )


def _broken_compression(file: DataFile, error: Exception) -> UserError:
    return UserError(
        "BrokenFile",
        f"{file.name} cannot be read: its compression is broken ({error}).",
        "Compress it again, with gzip or with zstd without --long, and check the upload.",
        file=file.name,
    )
