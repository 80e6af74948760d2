"""Gets the files of a source that hold the rows of a job, and digests them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune_api.facts import SourceFacts

from finetune_trainer.runtime.errors import UserError
from finetune_trainer.runtime.fsync import sha256_file
from finetune_trainer.sources.base import Source, SourceFile
from finetune_trainer.sources.dataset_card import (
    CARD,
    DATASET_DICT,
    STATE,
    CardError,
    read_card,
    read_dataset_dict,
    read_saved_files,
)
from finetune_trainer.sources.download_progress import (
    DownloadProgress,
    ProgressCallback,
    folder_bytes,
)
from finetune_trainer.sources.download_space import require_free_space
from finetune_trainer.sources.row_files import (
    SUFFIX_REMEDY,
    find_row_files,
    format_suffix,
    is_unreadable,
    strip_format,
)
from finetune_trainer.sources.selection import Declared, Selection, select_files, visible_paths
from finetune_trainer.sources.shards import check_shards
from finetune_trainer.sources.splits import TRAIN

log = logging.getLogger("finetune")


@dataclass(frozen=True)
class DataFile:
    """A file of rows on this node."""

    name: str
    """Path inside the source, by which the user knows it."""
    path: Path
    sha256: str
    """Digest of its bytes, in hex."""
    split: str = TRAIN
    """The split that the source is read for."""


def fetch_data_files(
    source: Source,
    folder: Path,
    report_progress: ProgressCallback,
    selection: Selection | None = None,
) -> list[DataFile]:
    """Get every file of rows that `selection` selects, in the order of their names; new files go to
    `folder`.

    Raises UserError where there is none, or where the selection is not clear.
    """
    folder.mkdir(parents=True, exist_ok=True)
    selection = selection or Selection()
    wanted = _list_wanted(source, folder, selection)
    total = sum(file.size or 0 for file in wanted)
    if source.address.scheme != "pvc":  # files of a claim are read in place
        require_free_space(
            total - folder_bytes(folder), folder, f"The data of {source.address.spec_field}"
        )
    with DownloadProgress(folder, total, report_progress):
        paths = [source.fetch(file, folder) for file in wanted]
    try:
        return [
            DataFile(file.path, path, sha256_file(path), selection.wanted_split)
            for file, path in zip(wanted, paths, strict=True)
        ]
    except PermissionError as error:
        raise source.address.access_denied(f"{error.filename} cannot be read") from None


def describe_source(source: Source, files: Sequence[DataFile]) -> SourceFacts:
    """The facts about a source of which `files` are read; the rows are not counted yet."""
    listed = [_relative(source, file.path) for file in source.files]
    candidates = visible_paths(find_row_files(listed, with_documents=False))
    read = {_relative(source, file.name) for file in files}
    return SourceFacts(
        uri=source.address.public_uri[:256],
        revision=source.revision,
        version=source.find_version(),
        digest=source_digest(source, files),
        files=len(files),
        files_left_out=len(set(candidates) - read),
        bytes=sum(file.path.stat().st_size for file in files),
    )


def check_digest(source: Source, files: Sequence[DataFile], pinned: str | None) -> None:
    """Raise UserError DigestMismatch where the files are not those that the job pins."""
    found = source_digest(source, files)
    if pinned is not None and found.removeprefix("sha256:") != pinned.removeprefix("sha256:"):
        field = source.address.spec_field
        raise UserError(
            "DigestMismatch",
            f"The content of {source.address.public_uri} has the digest {found}, and {field}.sha256"
            f" is {pinned}.",
            f"Restore the files, or set {field}.sha256 to the digest of these.",
        )


def source_digest(source: Source, files: Sequence[DataFile]) -> str:
    """`sha256:` and the digest of the one file, or of what `sha256sum` prints for all of them."""
    if len(files) == 1:
        return f"sha256:{files[0].sha256}"
    return data_digest(
        DataFile(_relative(source, file.name), file.path, file.sha256) for file in files
    )


def data_digest(files: Iterable[DataFile]) -> str:
    """`sha256:` and a digest over names and contents of all files."""
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.sha256}  {file.name}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _list_wanted(source: Source, folder: Path, selection: Selection) -> list[SourceFile]:
    by_path = {_relative(source, file.path): file for file in source.files}
    uri = source.address.public_uri
    is_folder = source.folder is not None
    if is_folder:
        paths = find_row_files(by_path, with_documents=selection.files is not None)
    else:
        paths = [path for path in by_path if format_suffix(path)]
    if not (visible_paths(paths) if is_folder and selection.is_default else paths):
        raise _unsupported(
            f"{uri} is not a file of rows, and contains none", source.files[0].path, SUFFIX_REMEDY
        )
    if selection.is_default and not is_folder:
        return list(by_path.values())
    if selection.files is None:
        declared = _read_declared(source, by_path, folder)
        chosen = select_files(paths, selection, declared, uri)
        chosen = _keep_saved(source, by_path, chosen, folder)
        if is_folder:
            check_shards(chosen, paths, selection, uri)
    else:
        chosen = select_files(paths, selection, Declared(), uri)
    _check_readable(chosen, selection, uri)
    if selection.files is None:
        _check_copies(chosen, selection, uri)
    _check_names(chosen, selection, uri)
    if left_out := sorted(set(paths) - set(chosen)):
        fields = {"source": selection.spec_field, "count": len(left_out), "first": left_out[0]}
        log.info("Data files left out", extra=fields)
    return [by_path[path] for path in chosen]


def _read_declared(source: Source, by_path: dict[str, SourceFile], folder: Path) -> Declared:
    for name in (CARD, DATASET_DICT):
        if name not in by_path:
            continue
        path = source.fetch(by_path[name], folder)
        with _card_errors(source, name):
            declared = (
                Declared(configs=read_card(path))
                if name == CARD
                else Declared(splits=read_dataset_dict(path))
            )
        if declared != Declared():
            return declared
    return Declared()


def _keep_saved(
    source: Source, by_path: dict[str, SourceFile], chosen: Sequence[str], folder: Path
) -> list[str]:
    """Without the .arrow files that the state.json next to them does not name; UserError where one
    that it names is missing."""
    kept = list(chosen)
    arrow = [path for path in chosen if format_suffix(path) == ".arrow"]
    for prefix in dict.fromkeys(path[: path.rfind("/") + 1] for path in arrow):
        state = f"{prefix}{STATE}"
        if state not in by_path:
            continue
        with _card_errors(source, state):
            saved = {
                f"{prefix}{name}" for name in read_saved_files(source.fetch(by_path[state], folder))
            }
            if missing := sorted(saved - by_path.keys()):
                raise CardError(f"it names {missing[0]}, which is missing")
        if saved:
            others = {path for path in arrow if path[: path.rfind("/") + 1] == prefix} - saved
            kept = [path for path in kept if path not in others]
    return kept


@contextmanager
def _card_errors(source: Source, file: str) -> Iterator[None]:
    try:
        yield
    except CardError as error:
        raise UserError(
            "BrokenFile",
            f"{file} of {source.address.public_uri} cannot be used: {error}.",
            f"Correct it, or set {source.address.spec_field}.files to a pattern.",
            file=file,
        ) from None


def _check_readable(chosen: Sequence[str], selection: Selection, uri: str) -> None:
    """Raise UserError where a file is of a format that is not read, or texts are mixed with other
    formats."""
    field = selection.spec_field
    if unreadable := [path for path in chosen if is_unreadable(path)]:
        raise _unsupported(
            f"{unreadable[0]} of {uri} seems to hold rows, but prepare does not read its format",
            unreadable[0],
            f"{SUFFIX_REMEDY} To leave it out, set {field}.files to a pattern for the others.",
        )
    texts = [path for path in chosen if format_suffix(path) == ".txt"]
    if texts and len(texts) < len(chosen) and selection.files is None:
        raise _unsupported(
            f"{uri} mixes text files, such as {texts[0]}, with files of other formats",
            texts[0],
            f"Set {field}.files to a pattern for the files to read, such as '*.jsonl'.",
        )


def _check_copies(chosen: Sequence[str], selection: Selection, uri: str) -> None:
    """Raise UserError where two names differ only in the format or the compression: the rows would
    be read twice."""
    seen: dict[str, str] = {}
    for path in chosen:
        other = seen.setdefault(strip_format(path), path)
        if other != path:
            raise UserError(
                "NoMatchingFiles",
                f"{uri} has {other} and {path}, which seem to hold the same rows.",
                f"Remove one of them, or set {selection.spec_field}.files to a pattern for the "
                "other; a pattern may match both.",
                file=path,
            )


def _check_names(chosen: Sequence[str], selection: Selection, uri: str) -> None:
    for path in chosen:
        try:
            path.encode()
        except UnicodeEncodeError:
            field = selection.spec_field
            raise UserError(
                "NotUTF8",
                f"The name of the file {path!a} of {uri} is not UTF-8.",
                f"Rename the file, or set {field}.files to a pattern for the others.",
                file=ascii(path),
            ) from None


def _unsupported(message: str, file: str, remedy: str) -> UserError:
    return UserError("UnsupportedFormat", f"{message}.", remedy, file=file)


def _relative(source: Source, path: str) -> str:
    return path.removeprefix(source.folder or "")
