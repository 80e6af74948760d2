"""Lines of text with their numbers: split at line feeds before they are decoded.

An error about a broken character then has its line, and characters that merely look like line ends
to Unicode do not shift the count.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from finetune_trainer.data.row_errors import RowError

BOM = b"\xef\xbb\xbf"
MAX_LINE_BYTES = 1 << 28
"""A longer line is an error: reading it would exhaust the memory of the pod."""
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


class UndecodableError(RowError):
    """Bytes that are not UTF-8, or that have a zero."""

    def __init__(self, message: str, raw: bytes) -> None:
        super().__init__("NotUTF8", message, "Save the file as UTF-8.")
        self.raw = raw


def iter_lines(
    stream: IO[bytes], max_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[int, str | RowError]]:
    """The number of each line, and its text with the line end, or its error.

    A line longer than `max_bytes` is the last.
    """
    number = 0
    while raw := stream.readline(max_bytes + 1):
        number += 1
        if len(raw) > max_bytes:
            yield (
                number,
                RowError(
                    "BrokenRow",
                    f"the line is longer than {max_bytes >> 20} MiB",
                    "Write one row per line, with line feeds between them.",
                ).at_end_of_file(),
            )
            return
        yield number, decode(raw.removeprefix(BOM) if number == 1 else raw)


def decode(raw: bytes) -> str | UndecodableError:
    """The text, or its error."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        utf16 = ": it is UTF-16" if raw.startswith(_UTF16_MARKS) else ""
        return UndecodableError(f"byte {error.start + 1} of the line is not UTF-8{utf16}", raw)
    if "\0" in text:
        position = raw.index(b"\0") + 1
        message = f"byte {position} of the line is zero, as in UTF-16 or in a binary file"
        return UndecodableError(message, raw)
    return text
