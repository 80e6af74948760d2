"""pvc://claim/path: a folder of a volume claim that is mounted read-only into this pod.

Links are followed only inside the claim (the Hugging Face cache layout is full of them): one that
leaves it could read other claims, the workspace, or the pod's own files.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from urllib.parse import unquote

from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.address import Address, safe_parts
from finetune_trainer.sources.base import SourceFile, listing_revision
from finetune_trainer.sources.dataset_card import CARD
from finetune_trainer.sources.row_files import format_suffix, is_unreadable


class ClaimSource:
    """Files below one folder of a claim, or the one file that the address names."""

    def __init__(
        self, address: Address, root: Path, base: Path, names: list[str], is_one_file: bool = False
    ) -> None:
        self.address = address
        self.folder = None if is_one_file else ""
        self._root = root
        self._base = base
        self.files = tuple(self._describe(name) for name in sorted(names))
        self.revision = listing_revision(self.files)

    def path_of(self, file: SourceFile) -> Path:
        """Path of the file in the mounted claim."""
        return _inside(self._root, self._base / file.path, self.address)

    def find_version(self) -> None:
        """None: files have no versions."""

    def fetch(self, file: SourceFile, folder: Path) -> Path:
        """Copy a model file, for later stages without the claim; a data file is read in place."""
        if self.address.kind == "dataset":
            return self.path_of(file)
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not (target.is_file() and target.stat().st_size == file.size):
            part = target.with_name(f"{target.name}.part")
            shutil.copyfile(self.path_of(file), part)
            part.rename(target)
        return target

    def _describe(self, name: str) -> SourceFile:
        state = _inside(self._root, self._base / name, self.address).stat()
        return SourceFile(name, state.st_size, f"{state.st_size}-{state.st_mtime_ns}")


def open_claim(address: Address, volumes: Path) -> ClaimSource:
    """List the files at pvc://claim/path."""
    claim, *inner = safe_parts(address.path, address)
    root = (volumes / claim).resolve()
    path = root.joinpath(*inner)
    try:
        if not path.exists():
            path = root.joinpath(*safe_parts(unquote("/".join(inner)), address))
        real = _inside(root, path, address)
        if real.is_file():
            return ClaimSource(address, root, path.parent, [path.name], is_one_file=True)
        names = [] if not real.is_dir() else _walk(root, real, address)
        if not names:
            raise address.not_found(_why_empty(root, path))
        return ClaimSource(address, root, real, names)
    except PermissionError as error:
        raise address.access_denied(f"{error.filename} cannot be read") from None
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
            raise
        raise address.not_found("a name is too long, or links lead in a circle") from None


def _walk(root: Path, folder: Path, address: Address) -> list[str]:
    """Paths of all files below `folder`. A link to a folder is followed unless it leads to one that
    is listed anyway, or upward."""
    found: list[Path] = []
    walked = {folder}
    for here, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        below = []
        for name in filter(_is_visible, folders):
            path = Path(here, name)
            if path.is_symlink():
                real = _inside(root, path, address)
                is_listed = real.is_relative_to(folder) or real in walked
                if is_listed or folder.is_relative_to(real):
                    continue
                walked.add(real)
            below.append(name)
        folders[:] = below
        for name in names:
            path = Path(here, name)
            if path.is_file() and not name.startswith("."):
                found.append(path)
            elif path.is_symlink() and not path.exists() and _is_read(name, address):
                raise _dangling_link(path, address)
    return [path.relative_to(folder).as_posix() for path in found]


def _is_read(name: str, address: Address) -> bool:
    """Whether a file of this name holds rows or, of a data set, declares which files do."""
    is_data = address.kind == "dataset" and (name == CARD or is_unreadable(name))
    return is_data or bool(format_suffix(name))


def _dangling_link(path: Path, address: Address) -> UserError:
    return UserError(
        "BrokenFile",
        f"{path.name} of {address.public_uri} is a link to a missing file.",
        "Replace the link with the file; run `git annex get` or `dvc pull` if one of them made it.",
        file=path.name,
    )


def _is_visible(folder: str) -> bool:
    """Whether the folder may hold data; lost+found is the file system's, and not readable."""
    return not folder.startswith(".") and folder != "lost+found"


def _raise(error: OSError) -> None:
    raise error


def _why_empty(root: Path, path: Path) -> str:
    if not root.exists():
        return f"the claim {root.name} is not mounted"
    return "the folder is empty" if path.exists() else "the claim has no such path"


def _inside(root: Path, path: Path, address: Address) -> Path:
    real = path.resolve()
    if real != root and root not in real.parents:
        raise UserError(
            "PathEscape",
            f"{path.name} of {address.public_uri} is a link that leaves the claim.",
            "Replace the link by the file that it points to.",
        )
    return real
