"""Recognises by their first bytes files whose content does not fit their name.

The error for a pointer of Git LFS, a login page or an archive under the name of a data file then
names what the file is, instead of the place where a parser failed.
"""

from __future__ import annotations

import re

HEAD_BYTES = 1024
"""How many bytes `describe_foreign_content` needs."""
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZSTD_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
"""A frame without data, with which pzstd begins a file (RFC 8878, section 3.1.2)."""
BINARY_SUFFIXES = (".parquet", ".arrow")

_UNPACK = "Unpack it, and upload the files of rows."
_COMPRESS = "Compress it as .gz or .zst, or not at all."
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook", "Unpack it, or save the sheet as .csv."),
    (b"PK\x05\x06", "an empty zip archive", "Upload the file of rows."),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook", "Save the sheet as .csv."),
    (b"BZh", "compressed with bzip2", _COMPRESS),
    (b"\xfd7zXZ\x00", "compressed with xz", _COMPRESS),
    (b"\x04\x22\x4d\x18", "compressed with lz4", _COMPRESS),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"PAR1", "a Parquet file", "Name it .parquet."),
    (b"ARROW1", "an Arrow file", "Name it .arrow."),
    (b"FEA1", "a Feather file of version 1", "Write it as Parquet."),
    (b"ORC", "an ORC file", "Write it as Parquet."),
    (b"Obj\x01", "an Avro file", "Write it as Parquet."),
    (b"SQLite format 3\x00", "a SQLite database", "Export its table as .csv or Parquet."),
    (b"\x89HDF\r\n", "an HDF5 file", "Write it as Parquet."),
    (b"\x93NUMPY", "a NumPy array", "Write its rows as JSON Lines or Parquet."),
    (b"%PDF-", "a PDF document", "Extract its text, and write it as rows."),
)
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_WEB_PAGE = re.compile(rb"\s*<(!doctype\s+html|html[\s>]|head[\s>])", re.IGNORECASE)
_XML = re.compile(rb"\s*<\?xml[\s]")
_TAR_OFFSET = 257


def describe_foreign_content(head: bytes, suffix: str) -> tuple[str, str] | None:
    """What a file with this suffix holds instead of rows, and the remedy; None for rows.

    `head` is the beginning of the file, decompressed if it is of a text format.
    """
    if head.startswith(_LFS_POINTER):
        return (
            "a pointer of Git LFS instead of the file",
            "Run `git lfs pull` in the repository, and upload the file again.",
        )
    if head.startswith((GZIP_MAGIC, ZSTD_MAGIC)):
        if suffix in BINARY_SUFFIXES:
            return "a compressed file", f"Decompress it: {suffix} compresses its columns itself."
        return "compressed twice", "Compress it once, or not at all."
    own_magic = {".parquet": b"PAR1", ".arrow": b"ARROW1"}.get(suffix)
    for magic, what, remedy in _MAGIC:
        if head.startswith(magic) and magic != own_magic and not _is_text(magic, head):
            return what, remedy
    if head[_TAR_OFFSET : _TAR_OFFSET + 5] == b"ustar":
        return "a tar archive", _UNPACK
    if _PICKLE.match(head):
        return "a pickle, which can run code and is not read", "Write the rows as JSON Lines."
    if suffix == ".txt":  # which may hold any text
        return None
    if _WEB_PAGE.match(head):
        return (
            "a web page, such as a login or an error page",
            "Download the file again with the right address and credentials.",
        )
    if _XML.match(head):
        return "an XML document", "Write its rows as JSON Lines or .csv."
    return None


def _is_text(magic: bytes, head: bytes) -> bool:
    """Whether the letters of `magic` are the beginning of a text, such as the header of a .csv."""
    return magic.isalnum() and b"\x00" not in head and head[:64].isascii()
