"""Which names are those of files of rows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
COMPRESSIONS = (".gz", ".zst")
SUFFIXES = (
    *TEXT_SUFFIXES,
    *(f"{suffix}{compression}" for suffix in TEXT_SUFFIXES for compression in COMPRESSIONS),
    ".parquet",
    ".arrow",
)
SUFFIX_REMEDY = (
    "Use .jsonl, .json, .csv, .tsv or .txt, each also with .gz or .zst, or .parquet or .arrow."
)
_METADATA = {
    "config.json",
    "dataset_dict.json",
    "dataset_info.json",
    "dataset_infos.json",
}
_ARROW_METADATA = re.compile(r"state\.json|cache-.*\.arrow")
"""What datasets writes next to the .arrow files of `save_to_disk`, which are not rows of it."""
_DOCUMENT = re.compile(
    r"(readme|licen[cs]e|notice|changelog|citation|requirements|authors|contributing)\b.*\.txt",
    re.IGNORECASE,
)
_UNREADABLE = re.compile(
    r".*\.(?:(?:jsonl|ndjson|json|csv|tsv|txt|parquet|arrow)\.(?:bz2|xz|lzma|lz4|zip|7z|br|snappy)"
    r"|parquet\.(?:gz|zst)|arrow\.(?:gz|zst)|xlsx?|ods|feather|orc|avro)",
    re.IGNORECASE,
)


def format_suffix(name: str) -> str:
    """The suffix that says how a file of rows is read, such as .jsonl; empty for other files."""
    lowered = name.lower()
    if not lowered.endswith(SUFFIXES):
        return ""
    for compression in COMPRESSIONS:
        lowered = lowered.removesuffix(compression)
    suffix = PurePosixPath(lowered).suffix
    return ".jsonl" if suffix == ".ndjson" else suffix


def find_row_files(paths: Iterable[str], with_documents: bool) -> list[str]:
    """The files that hold rows, and those that hold rows in a form that is not read.

    Left out are metadata of datasets, lost+found, and without `with_documents` a README.txt and its
    like.
    """
    paths = list(paths)
    arrow_folders = {_folder(path) for path in paths if path.lower().endswith(".arrow")}
    return [
        path
        for path in paths
        if (format_suffix(path) or is_unreadable(path))
        and "lost+found" not in path.split("/")
        and _name(path) not in _METADATA
        and not (_ARROW_METADATA.fullmatch(_name(path)) and _folder(path) in arrow_folders)
        and (with_documents or not _DOCUMENT.fullmatch(_name(path)))
    ]


def is_unreadable(path: str) -> bool:
    """Whether a file seems to hold rows in a form that is not read, such as .csv.bz2 or .xlsx."""
    return bool(_UNREADABLE.fullmatch(path))


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _name(path: str) -> str:
    return path.rpartition("/")[2]
