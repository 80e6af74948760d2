"""Unpacks a model that comes as one archive, without trusting the archive.

Only plain files that a model needs are written, each below the target, once, never through a link,
and no more bytes than the archive declares, so that a small download cannot fill the workspace.
"""

from __future__ import annotations

import errno
import lzma
import os
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.model_files import Layout

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")
MAX_MEMBERS = 100_000
"""More files and folders than any model has; their list stays in memory."""
_MAX_NAME, _MAX_PATH = 255, 1024
"""Bytes of a name and of a path that every file system takes."""
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,  # encrypted, or compressed in an unknown way
    ValueError,  # a name that is not UTF-8
)


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
                raise _unsafe(
                    uri, f"its member {member.name!r} is longer than the archive declares"
                )


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
                yield _check_members(_zip_members(packed, uri), uri)
        else:
            with tarfile.open(archive) as tar:
                yield _check_members(_tar_members(tar, uri), uri)
    except _BROKEN as error:
        # EINVAL: a size that is negative leads tarfile to a place before the file.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise UserError(
            "BrokenArchive",
            f"{uri} cannot be unpacked: {error}.",
            "Pack the model again as .tar, .tar.gz or .zip and check that the upload is complete.",
        ) from None


def _zip_members(packed: zipfile.ZipFile, uri: str) -> Iterator[Member]:
    for number, info in enumerate(packed.infolist()):
        _check_number(number, uri)
        if (info.external_attr >> 16) & 0o170000 == 0o120000:
            raise _unsafe(uri, f"its member {info.filename!r} is a link")
        if not info.is_dir():
            yield Member(info.filename, info.file_size, partial(packed.open, info))


def _tar_members(tar: tarfile.TarFile, uri: str) -> Iterator[Member]:
    for number, info in enumerate(tar):
        _check_number(number, uri)
        if info.isdir():
            continue
        if not info.isfile():
            raise _unsafe(uri, f"its member {info.name!r} is not a plain file")
        yield Member(info.name, info.size, partial(_open_member, tar, info))


def _open_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = tar.extractfile(info)
    if stream is None:
        raise tarfile.ReadError(f"{info.name} has no content")
    return stream


def _check_members(members: Iterable[Member], uri: str) -> list[Member]:
    """All members with normal names; UserError where one is unsafe to write."""
    checked: dict[str, Member] = {}
    for member in members:
        name = _normal_name(member.name, uri)
        if name in checked:
            raise _unsafe(uri, f"its member {name!r} is there twice")
        checked[name] = replace(member, name=name)
    for name in checked:
        for folder in PurePosixPath(name).parents:
            if folder.as_posix() in checked:
                raise _unsafe(uri, f"its member {folder.as_posix()!r} is a file and a folder")
    return list(checked.values())


def _check_number(number: int, uri: str) -> None:
    if number == MAX_MEMBERS:
        raise _unsafe(uri, f"it has more than {MAX_MEMBERS} files and folders")


def _normal_name(name: str, uri: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise _unsafe(uri, f"its member {name!r} leads out of the archive")
    if any(unicodedata.category(each) == "Cc" for each in name):
        raise _unsafe(uri, f"its member {name!r} has control characters in its name")
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if longest > _MAX_NAME or len(os.fsencode(name)) > _MAX_PATH:
        raise _unsafe(uri, f"the name of its member {name[:64]!r}… is too long")
    return path.as_posix()


def _unsafe(uri: str, why: str) -> UserError:
    return UserError(
        "UnsafeArchive",
        f"{uri} is refused: {why}.",
        "Pack only plain files with relative names, each of them once.",
    )
