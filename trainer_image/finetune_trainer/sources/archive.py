"""Unpacks a model that comes as one archive, without trusting the archive.

Only plain files that a model needs are written, each below the target and never through a link, and
no more bytes than the archive declares, so that a small download cannot fill the workspace.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.model_files import Layout

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")


@dataclass(frozen=True)
class Member:
    """A plain file of an archive."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def unpack(
    archive: Path,
    target: Path,
    layout: Layout,
    wanted: Callable[[str], bool],
    require_space: Callable[[int], None],
    uri: str,
) -> None:
    """Write the files of the folder with the main file of `layout` that are `wanted`.

    `require_space` is called with their bytes before the first one is written, and may raise.
    Raises UserError where the archive is broken or unsafe, or has no such folder.
    """
    with _members(archive, uri) as members:
        root = _root_folder([member.name for member in members], layout, uri)
        inside = [member for member in members if member.name.startswith(root)]
        chosen = [member for member in inside if wanted(member.name.removeprefix(root))]
        require_space(sum(member.size for member in chosen))
        for member in chosen:
            _write(member, target / member.name.removeprefix(root), uri)


def _write(member: Member, path: Path, uri: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with member.open() as source, path.open("wb") as sink:
        while chunk := source.read(1 << 20):
            sink.write(chunk)
            if sink.tell() > member.size:
                raise _unsafe(uri, member.name, "is longer than the archive declares")


def _root_folder(names: list[str], layout: Layout, uri: str) -> str:
    main_file = layout.main_file
    roots = [name.removesuffix(main_file) for name in names if _base(name) == main_file]
    if not roots:
        # It raises the error, because the main file is missing.
        layout.check_listing(map(_base, names), uri)
    return min(roots, key=len)


def _base(name: str) -> str:
    return name.rsplit("/", 1)[-1]


@contextmanager
def _members(archive: Path, uri: str) -> Iterator[list[Member]]:
    try:
        if zipfile.is_zipfile(archive) and archive.name.endswith(".zip"):
            with zipfile.ZipFile(archive) as packed:
                yield [_check_member(member, uri) for member in _zip_members(packed, uri)]
        else:
            with tarfile.open(archive) as tar:
                yield [_check_member(member, uri) for member in _tar_members(tar, uri)]
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(
            "BrokenArchive",
            f"{uri} cannot be unpacked: {error}.",
            "Pack the model again as .tar, .tar.gz or .zip and check that the upload is complete.",
        ) from None


def _zip_members(packed: zipfile.ZipFile, uri: str) -> Iterator[Member]:
    for info in packed.infolist():
        if (info.external_attr >> 16) & 0o170000 == 0o120000:
            raise _unsafe(uri, info.filename, "is a link")
        if not info.is_dir():
            yield Member(info.filename, info.file_size, partial(packed.open, info))


def _tar_members(tar: tarfile.TarFile, uri: str) -> Iterator[Member]:
    for info in tar:
        if info.isdir():
            continue
        if not info.isfile():
            raise _unsafe(uri, info.name, "is not a plain file")
        yield Member(info.name, info.size, partial(_open_member, tar, info))


def _open_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = tar.extractfile(info)
    if stream is None:
        raise tarfile.ReadError(f"{info.name} has no content")
    return stream


def _check_member(member: Member, uri: str) -> Member:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
        raise _unsafe(uri, member.name, "leads out of the archive")
    return Member(path.as_posix(), member.size, member.open)


def _unsafe(uri: str, name: str, why: str) -> UserError:
    return UserError(
        "UnsafeArchive",
        f"{uri} is refused: its member {name!r} {why}.",
        "Pack only plain files with relative names.",
    )
