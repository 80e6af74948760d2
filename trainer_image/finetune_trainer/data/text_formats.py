"""Parses text files of rows: JSON Lines, CSV, TSV and plain text.

The readers are our own, because Arrow's give no exact line: see docs/decisions/0009-libraries.md.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder
from typing import IO, Any

from finetune_trainer.data.row_errors import RowError
from finetune_trainer.data.text_lines import UndecodableError, iter_lines

_MAX_CELL_BYTES = 1 << 30
_OTHER_DELIMITERS = {",": ("a comma", ".csv"), ";": ("a semicolon", ""), "\t": ("a tab", ".tsv")}

NumberedRow = tuple[int, Any]
"""Line, and the row or its RowError."""


def parse_json_lines(stream: IO[bytes]) -> Iterator[NumberedRow]:
    """A row for every line that is not blank."""
    for number, text in iter_lines(stream):
        if isinstance(text, RowError):
            yield number, text
        elif text.strip():
            yield number, parse_json(text)


def parse_json(text: str) -> Any:
    """One line as JSON, or its RowError."""
    try:
        # Without its line break, which the decoder would count as a line of its own. Of joined
        # files each may begin with a byte order mark.
        return JSON.decode(text.rstrip("\r\n").removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        return json_error(error, "Write one complete JSON object per line.")


def json_error(error: Exception, remedy: str) -> RowError:
    """Why JSON cannot be read."""
    match error:
        case UnusableJSON():
            return RowError("BrokenRow", str(error), error.remedy)
        case JSONDecodeError():
            message = f"not valid JSON at column {error.colno}: {error.msg}"
            return RowError("BrokenRow", message, remedy)
        case _:
            message = "a number is too long, or it is nested too deeply"
            return RowError("BrokenRow", message, "Simplify it.")


class UnusableJSON(ValueError):
    """JSON that Python reads, but in which a value would be lost or changed."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise UnusableJSON(*_describe_duplicate(duplicate))
    return values


def _refuse_constant(name: str) -> None:
    raise UnusableJSON(
        f"{name} is not a number in JSON", "Write null, or leave the column out of the row."
    )


def _make_float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise UnusableJSON(f"the number {digits[:40]} is too large", "Write it as a text.")
    return number


JSON = JSONDecoder(
    object_pairs_hook=_make_object, parse_constant=_refuse_constant, parse_float=_make_float
)
"""Raises UnusableJSON for duplicate keys, NaN and infinity."""


def duplicate_column(name: str) -> RowError:
    """The error for two columns of one name."""
    return RowError("BrokenRow", *_describe_duplicate(name))


def _describe_duplicate(name: str) -> tuple[str, str]:
    return (
        f"the column {name!r} appears twice, and only one of the two could be used",
        "Give every column a name of its own.",
    )


def parse_text(stream: IO[bytes]) -> Iterator[NumberedRow]:
    """A row {"text": line} for every line that is not blank, as the hub's builder `text` makes.

    A carriage return inside a line is an error: only line feeds end lines.
    """
    for number, text in iter_lines(stream):
        if isinstance(text, RowError):
            yield number, text
        elif text.strip():
            line = text.rstrip("\r\n")
            yield number, _carriage_return() if "\r" in line else {"text": line}


def _carriage_return() -> RowError:
    return RowError(
        "BrokenRow",
        "a carriage return inside the line does not end it, so several lines would be one row",
        "Save the file with line feeds as line ends.",
    )


def parse_csv(stream: IO[bytes], delimiter: str) -> Iterator[NumberedRow]:
    """A row for every record below the header, with the line in which it begins."""
    csv.field_size_limit(_MAX_CELL_BYTES)
    lines = _NumberedLines(stream)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        start = lines.number + 1
        try:
            cells = next(reader, None)
        except RowError as error:
            yield lines.number, error
            return
        except csv.Error as error:
            remedy = "Quote cells that hold commas, quotes or line ends, and double inner quotes."
            broken = RowError("BrokenRow", f"not valid CSV: {error}", remedy)
            number, cause = lines.pop_undecodable() or (start, broken)
            yield number, cause.at_end_of_file()
            return
        if cells is None:
            return
        if undecodable := lines.pop_undecodable():
            number, cause = undecodable
            if header is None:
                yield number, cause.at_end_of_file()
                return
            yield number, cause
        elif header is None:
            if not cells:
                continue
            header = _to_names(cells)
            if unusable := _check_header(header, delimiter):
                yield start, unusable.at_end_of_file()
                return
        elif cells:
            yield start, _make_record(header, cells)


def _to_names(cells: list[str]) -> list[str]:
    """Cells as names of columns.

    Of joined files each may begin with a byte order mark, after which quotes are part of the cell.
    """
    names = [cell.strip() for cell in cells]
    if names[0].startswith("\ufeff"):
        names[0] = names[0].removeprefix("\ufeff").strip('"')
    return names


def _check_header(header: list[str], delimiter: str) -> RowError | None:
    if duplicates := [name for name in header if name and header.count(name) > 1]:
        return duplicate_column(duplicates[0])
    used = [each for each in _OTHER_DELIMITERS if each != delimiter and each in header[0]]
    if len(header) == 1 and used:
        wanted, _ = _OTHER_DELIMITERS[delimiter]
        found, suffix = _OTHER_DELIMITERS[used[0]]
        remedy = f"Separate the columns by {wanted}"
        remedy += f", or name the file {suffix}." if suffix else "."
        return RowError("BrokenRow", f"the columns are separated by {found}", remedy)
    return None


def _make_record(header: list[str], cells: list[str]) -> dict[str, str] | RowError:
    # Most lines differ in the last cell already.
    if len(header) > 1 and cells[-1].strip() == header[-1] and _to_names(cells) == header:
        return RowError(
            "BrokenRow",
            "it repeats the names of the columns, as where files were joined",
            "Remove the line.",
        )
    if len(cells) == len(header):
        return dict(zip(header, cells, strict=True))
    return RowError(
        "BrokenRow",
        f"{len(cells)} cells under {len(header)} column names",
        "Give every row as many cells as the first, and quote cells that hold commas.",
    )


class _NumberedLines:
    """Decoded lines for the csv module, whose own count of lines differs within quotes.

    A line that cannot be decoded is passed on with replacement characters, because a quoted cell
    may begin or end in it; the record with it is an error.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._lines = iter_lines(stream)
        self.number = 0
        self._undecodable: tuple[int, UndecodableError] | None = None

    def pop_undecodable(self) -> tuple[int, UndecodableError] | None:
        """Number and error of the first undecodable line since the last call."""
        found, self._undecodable = self._undecodable, None
        return found

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.number, text = next(self._lines)
        if isinstance(text, UndecodableError):
            self._undecodable = self._undecodable or (self.number, text)
            return text.raw.decode(errors="replace")
        if isinstance(text, RowError):
            raise text
        return text
