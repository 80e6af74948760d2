"""Parses files of rows, each record with its exact line.

The suffix of the name decides how a file is read. In .parquet and .arrow files the "line" is the
number of the row.
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
    ZSTD_SKIPPABLE,
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
from finetune_trainer.data.text_lines import BOM, iter_lines
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.dataset_files import DataFile
from finetune_trainer.sources.row_files import format_suffix

_LIST_OR_OPEN_OBJECT = re.compile(
    rb'\s*(?:(\[)|\{[ \t]*(?:"[^"\n]*"[ \t]*:[ \t]*[\[{][ \t]*)?\r?\n)'
)
"""The beginning of a list, or of an object that continues after its first line."""


@dataclass(frozen=True)
class Record:
    """One row as the file has it: columns and values, not yet checked."""

    file: str
    line: int
    """Line in the file, counted from 1; in a .parquet or .arrow file the row."""
    values: dict[str, Any]


def iter_records(files: list[DataFile], errors: RowErrors) -> Iterator[Record]:
    """Every record of every file; rows that cannot be parsed are added to `errors`.

    Raises UserError where a file cannot be read at all.
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
        head = _read_head(file, suffix)
        if suffix in BINARY_SUFFIXES:
            yield from parse_parquet(file.path) if suffix == ".parquet" else parse_arrow(file.path)
            return
        with _open(file.path) as stream:
            yield from _parse_text_file(file, suffix, head, stream)
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _broken_compression(file, error) from None


def _parse_text_file(
    file: DataFile, suffix: str, head: bytes, stream: IO[bytes]
) -> Iterator[NumberedRow]:
    match suffix:
        case ".csv":
            yield from parse_csv(stream, ",")
        case ".tsv":
            yield from parse_csv(stream, "\t")
        case ".txt":
            yield from parse_text(stream)
        case ".json" if not _has_json_lines(file.path, head):
            yield from parse_json_document(stream.read(), file.split)
        case ".jsonl" if begins := _LIST_OR_OPEN_OBJECT.match(head):
            yield 1, _not_json_lines("list" if begins[1] else "object over several lines")
        case _:
            yield from parse_json_lines(stream)


def _open(path: Path) -> IO[bytes]:
    # A server may have decompressed a .gz in transit, so the first bytes decide, not the name.
    with path.open("rb") as file:
        head = file.read(len(ZSTD_MAGIC))
    if head.startswith(GZIP_MAGIC):
        return gzip.open(path)  # type: ignore[return-value]
    if head == ZSTD_MAGIC or ZSTD_SKIPPABLE.match(head):
        import pyarrow

        compressed = pyarrow.OSFile(str(path))
        return io.BufferedReader(pyarrow.CompressedInputStream(compressed, "zstd"))
    return path.open("rb")


def _read_head(file: DataFile, suffix: str) -> bytes:
    """The first bytes without a byte order mark and without white space that fills them.

    Raises UserError where they do not begin rows.
    """
    with file.path.open("rb") if suffix in BINARY_SUFFIXES else _open(file.path) as stream:
        head = stream.read(HEAD_BYTES).removeprefix(BOM)
        while head.isspace() and (following := stream.read(HEAD_BYTES)):
            head = following.lstrip() + stream.read(HEAD_BYTES)
    if found := describe_foreign_content(head, suffix):
        what, remedy = found
        message = f"{file.name} does not hold rows: it is {what}."
        raise UserError("NotRows", message, remedy, file=file.name)
    return head


def _has_json_lines(path: Path, head: bytes) -> bool:
    """Whether a .json file has a complete object on its first line, and another line after it; or
    is empty."""
    if not head.lstrip().startswith(b"{"):
        return not head.strip()
    with _open(path) as stream:
        texts = (text for _, text in iter_lines(stream))
        lines = (text for text in texts if isinstance(text, RowError) or text.strip())
        first, has_second = next(lines), next(lines, None) is not None
    return has_second and isinstance(first, str) and isinstance(parse_json(first), dict)


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
        "Compress it again with gzip, or with zstd without --long, and check the upload.",
        file=file.name,
    )
