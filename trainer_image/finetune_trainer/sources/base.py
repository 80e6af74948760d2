"""The interface of a source, the same for every scheme."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from finetune_trainer.sources.address import Address


@dataclass(frozen=True)
class SourceFile:
    """One file of a source."""

    path: str
    """Relative path with forward slashes."""
    size: int | None
    """Bytes; None where the source does not give it."""
    tag: str
    """Changes when the content does: an ETag, a blob id, or size and modification time."""
    sha256: str | None = None
    """Digest that the source gives, in hex."""


class Source(Protocol):
    """The files at an address, at one revision, and how they are fetched."""

    address: Address
    files: tuple[SourceFile, ...]
    """Every file, sorted by path; never empty."""
    folder: str | None
    """The folder of the address as a prefix of every path, with a slash at its end; empty where
    paths are relative to it, None where the address names one file."""
    revision: str
    """A commit, or `sha256:` and a digest of the listing: the same revision, the same bytes."""

    def find_version(self) -> str | None:
        """Version of the one object at the address; None where the source gives none."""

    def fetch(self, file: SourceFile, folder: Path) -> Path:
        """Get one file; returns its path, `folder`/`file.path` or where it can be read in place."""


def listing_revision(files: Iterable[SourceFile]) -> str:
    """A digest that changes when any name, size or tag of a listing does."""
    total = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.path):
        entry = f"{file.path}\0{file.size}\0{file.tag}\n"
        total.update(entry.encode(errors="surrogateescape"))
    return f"sha256:{total.hexdigest()}"
