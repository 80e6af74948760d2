"""Which files of a source hold rows, and their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.runtime.errors import UserError
from finetune_trainer.runtime.fsync import sha256_of
from finetune_trainer.sources.base import Source, SourceFile
from finetune_trainer.sources.download_progress import Meter, Tell, bytes_below
from finetune_trainer.sources.free_space import reserve

TEXT_SUFFIXES = (".jsonl", ".json", ".csv")
SUFFIXES = (*TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in TEXT_SUFFIXES), ".parquet")


@dataclass(frozen=True)
class DataFile:
    """A file of rows on this machine."""

    name: str
    """What the user calls it: the path inside the source."""
    path: Path
    """Where it lies."""
    sha256: str
    """Digest of its bytes, in hex."""


def fetch_data_files(source: Source, folder: Path, tell: Tell) -> list[DataFile]:
    """Bring every file of rows to `folder`, in the order of their names.

    Raises UserError UnsupportedFormat where there is none.
    """
    wanted = [file for file in source.files if _has_rows(file.path)]
    if not wanted:
        raise UserError(
            "UnsupportedFormat",
            f"{source.address.shown} is not a file of rows, and holds none.",
            f"Use {', '.join(SUFFIXES)}.",
            file=source.files[0].path,
        )
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(file.size or 0 for file in wanted)
    if source.address.scheme != "pvc":  # those are read where they lie
        reserve(total - bytes_below(folder), folder, f"The data of {source.address.where}")
    with Meter(folder, total, tell):
        paths = [source.fetch(file, folder) for file in wanted]
    return [_described(file, path) for file, path in zip(wanted, paths, strict=True)]


def data_digest(files: Iterable[DataFile]) -> str:
    """`sha256:` and a digest over names and contents of all files."""
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.sha256}  {file.name}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _has_rows(path: str) -> bool:
    hidden = any(part.startswith((".", "_")) for part in path.split("/"))
    return path.lower().endswith(SUFFIXES) and not hidden


def _described(file: SourceFile, path: Path) -> DataFile:
    return DataFile(file.path, path, sha256_of(path))
