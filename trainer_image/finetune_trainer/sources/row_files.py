"""Which names are those of files of rows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

_TEXT_SUFFIXES = (".jsonl", ".ndjson", ".jsonlines", ".json", ".csv", ".tsv", ".txt")
_COMPRESSIONS = (".gz", ".gzip", ".zst", ".zstd")
_ALIASES = {".ndjson": ".jsonl", ".jsonlines": ".jsonl", ".pq": ".parquet", ".parq": ".parquet"}
_SUFFIXES = (
    *_TEXT_SUFFIXES,
    *(f"{suffix}{compression}" for suffix in _TEXT_SUFFIXES for compression in _COMPRESSIONS),
    ".parquet",
    ".parq",
    ".pq",
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
    "Thumbs.db",
}
_ARROW_METADATA = re.compile(r"state\.json|cache-.*\.arrow")
"""What datasets writes next to the .arrow files of `save_to_disk`, other than rows."""
_DOCUMENT = re.compile(
    r"(?:readme|licen[cs]e|notice|changelog|citation|requirements|authors|contributing)\.txt",
    re.IGNORECASE,
)
_SIDECARS = re.compile(
    r".*\.(?:md|rst|license|dvc|sha(?:1|256|512)|md5|crc|sig|asc|idx|lock|metadata|py|sh|ya?ml|toml)",
    re.IGNORECASE,
)
"""Files that describe other files, such as a.jsonl.sha256."""
_UNREADABLE = re.compile(
    r".*\.(?:gz|gzip|zst|zstd|bz2|xz|lzma|lz4|lzo|br|snappy|zip|tar|tgz|tbz2?|txz|7z|rar"
    r"|xls|xls[xmb]|ods|numbers|feather|orc|avro|pkl|pickle|npy|npz|h5|hdf5|mds|tfrecords?"
    r"|sqlite3?|db3?|duckdb|mdb|accdb|lance|msgpack|rds|rdata|sav|dta|sas7bdat|json5|xml"
    r"|part|partial|filepart|crdownload|download|incomplete|tmp)"
    # Copies and parts of a file of rows, such as a.csv.old and rows.jsonl-00000-of-00002.
    r"|.*\.(?:jsonl|ndjson|jsonlines|json|csv|tsv|txt|parquet|parq|pq|arrow)(?:~|[-.].*)"
    # Parts that Spark or Hadoop wrote, such as part-00000 and 000000_0.
    r"|part-[^.]*|(?:[^.]*[-_])?\d+",
    re.IGNORECASE,
)


def format_suffix(name: str) -> str:
    """The suffix that decides how a file of rows is read, such as .jsonl; empty for others."""
    lowered = name.lower()
    if not lowered.endswith(_SUFFIXES):
        return ""
    for compression in _COMPRESSIONS:
        lowered = lowered.removesuffix(compression)
    suffix = PurePosixPath(lowered).suffix
    return _ALIASES.get(suffix, suffix)


def strip_format(path: str) -> str:
    """The path without the suffixes of format and compression, if it has any."""
    lowered = path.lower()
    found = next((suffix for suffix in _SUFFIXES if lowered.endswith(suffix)), "")
    return path[: len(path) - len(found)]


def find_row_files(paths: Iterable[str], with_documents: bool) -> list[str]:
    """The files that hold rows, and those that hold rows in a form that is not read.

    Left out are metadata of datasets, lost+found, and without `with_documents` README.txt and
    similar texts.
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
    """Whether a file seems to hold rows in a form that is not read, such as .csv.bz2 or .xlsx, or
    a part without a suffix in a folder a.jsonl."""
    *folders, name = path.split("/")
    if format_suffix(name) or _SIDECARS.fullmatch(name):
        return False
    return bool(_UNREADABLE.fullmatch(name)) or any(map(format_suffix, folders))


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _name(path: str) -> str:
    return path.rpartition("/")[2]
