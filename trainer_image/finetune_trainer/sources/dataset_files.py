"""The files of a source that hold rows, and their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.runtime.errors import UserError
from finetune_trainer.runtime.fsync import sha256_file
from finetune_trainer.sources.base import Source
from finetune_trainer.sources.download_progress import (
    DownloadProgress,
    ProgressCallback,
    folder_bytes,
)
from finetune_trainer.sources.download_space import require_free_space

TEXT_SUFFIXES = (".jsonl", ".json", ".csv")
SUFFIXES = (*TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in TEXT_SUFFIXES), ".parquet")


@dataclass(frozen=True)
class DataFile:
    """A file of rows on this node."""

    name: str
    """Path inside the source, by which the user knows it."""
    path: Path
    sha256: str
    """Digest of its bytes, in hex."""


def fetch_data_files(
    source: Source, folder: Path, report_progress: ProgressCallback
) -> list[DataFile]:
    """Get every file of rows, in the order of their names; new files go to `folder`.

    Raises UserError UnsupportedFormat where the source has none.
    """
    wanted = [file for file in source.files if _has_rows(file.path)]
    if not wanted:
        raise UserError(
            "UnsupportedFormat",
            f"{source.address.public_uri} is not a file of rows, and contains none.",
            f"Use {', '.join(SUFFIXES)}.",
            file=source.files[0].path,
        )
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(file.size or 0 for file in wanted)
    if source.address.scheme != "pvc":  # files of a claim are read in place
        require_free_space(
            total - folder_bytes(folder), folder, f"The data of {source.address.spec_field}"
        )
    with DownloadProgress(folder, total, report_progress):
        paths = [source.fetch(file, folder) for file in wanted]
    return [
        DataFile(file.path, path, sha256_file(path))
        for file, path in zip(wanted, paths, strict=True)
    ]


def data_digest(files: Iterable[DataFile]) -> str:
    """`sha256:` and a digest over names and contents of all files."""
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.sha256}  {file.name}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _has_rows(path: str) -> bool:
    hidden = any(part.startswith((".", "_")) for part in path.split("/"))
    return path.lower().endswith(SUFFIXES) and not hidden
