"""A complete checkpoint is a folder with a marker.

A checkpoint is a folder checkpoints/<attempt>/step-<8 digits>. The ranks write it in the scratch
folder of their attempt. Once all are done, rank 0 adds the marker file COMPLETE, which lists the
SHA-256 and the size of every file, and publishes the folder with one rename. A folder without a
marker is not a checkpoint. An attempt that was replaced may keep a device busy for a while, but it
cannot publish anything into the run (see `fencing`).

A node that mounts the volume over NFS may list a folder as it was up to a minute ago, but it opens
a file as it is. So the newest checkpoint is also named in checkpoints/latest.json, and its files
are read by the names in its marker.
"""

import contextlib
import errno
import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer.runtime.fencing import Attempt, is_attempt_number
from finetune_trainer.runtime.fsync import fsync_path, fsync_tree, sha256_file

log = logging.getLogger("finetune")

MARKER = "COMPLETE"
LATEST = "latest.json"
"""File next to the folders of attempts that names the newest checkpoint."""


FOLDER_NAME = re.compile(r"step-([0-9]{8,})")


UNREADABLE_ERRNOS = (errno.EIO, errno.EUCLEAN, errno.EBADMSG)
"""Errors that a volume returns for a file with a bad block or a wrong checksum."""


FileList = dict[str, dict[str, Any]]
"""SHA-256 and size of files, by path within the checkpoint."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint folder with a marker; its files have not been verified yet."""

    folder: Path
    attempt: int
    step: int
    marker: dict[str, Any]
    is_readable: bool = True
    """False if the volume returns an error for the marker; `marker` is empty then."""


def hash_files(folder: Path) -> FileList:
    """SHA-256 and size of all files below a folder but the marker."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    return {str(path.relative_to(folder)): hash_file(path) for path in files}


def hash_listed_files(
    folder: Path, names: Iterable[str], index: int = 0, stride: int = 1
) -> FileList:
    """SHA-256 and size of files whose names are known, or of every `stride`-th one of them from
    `index` on; those that are missing are left out."""
    found = {}
    for name in sorted(names)[index::stride]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found[name] = hash_file(folder / name)
    return found


def hash_file(path: Path) -> dict[str, Any]:
    return {"sha256": sha256_file(path), "size": path.stat().st_size}


def publish_checkpoint(
    attempt: Attempt, partial: Path, final: Path, marker: dict[str, Any]
) -> None:
    """Write the marker of a checkpoint whose files are durable, then rename the folder to `final`.

    Raises RetryableError Fenced if a later attempt has replaced this one.
    """
    with attempt.fencing_errors():
        (partial / MARKER).write_text(json.dumps(marker))
        fsync_tree(partial / MARKER)
        partial.chmod(0o755)
        fsync_path(partial)
    final.parent.mkdir(parents=True, exist_ok=True)
    for folder in (final.parent, final.parent.parent):
        folder.chmod(0o755)
    attempt.publish(partial, final)
    name = json.dumps({"folder": f"{final.parent.name}/{final.name}"})
    try:
        attempt.publish_file(final.parent.parent / LATEST, name.encode())
    except OSError as error:
        # The checkpoint is complete, and listed.
        log.warning("The newest checkpoint was not recorded", extra={"error": str(error)})


def list_checkpoints(job: Path, attempt: int) -> list[SavedCheckpoint]:
    """Complete checkpoints of this and earlier attempts, latest step first."""
    folders = {f for _, each in attempt_folders(job, attempt) for f in _list_folder(each)}
    folders |= _read_latest(job, attempt)
    checkpoints = []
    for folder in folders:
        if name := FOLDER_NAME.fullmatch(folder.name):
            checkpoints += _read_marker(folder, int(folder.parent.name), int(name[1]))
    return sorted(checkpoints, key=lambda c: (c.step, c.attempt), reverse=True)


def attempt_folders(job: Path, attempt: int) -> Iterator[tuple[int, Path]]:
    """Numbers and folders of the attempts up to this one. Other folders do not belong to the run
    and are ignored."""
    for folder in _list_folder(job / "checkpoints"):
        if is_attempt_number(folder.name) and int(folder.name) <= attempt:
            yield int(folder.name), folder


def _read_latest(job: Path, attempt: int) -> set[Path]:
    """The folder that latest.json names, if it is one of this or an earlier attempt. Retention may
    have removed it since."""
    try:
        named = str(json.loads((job / "checkpoints" / LATEST).read_bytes())["folder"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    number, _, step = named.partition("/")
    if not (is_attempt_number(number) and int(number) <= attempt and FOLDER_NAME.fullmatch(step)):
        return set()
    return {job / "checkpoints" / number / step}


def _list_folder(folder: Path) -> list[Path]:
    """The entries of a folder. Unlike `glob` this raises OSError for a folder that cannot be read:
    if it looked empty, the run would start over and remove the checkpoints that it has."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read_marker(folder: Path, attempt: int, step: int) -> list[SavedCheckpoint]:
    """The checkpoint in a folder; empty if the folder has no valid marker."""
    try:
        marker = json.loads((folder / MARKER).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except ValueError:
        marker = None
    except OSError as error:
        if error.errno not in UNREADABLE_ERRNOS:
            raise
        return [SavedCheckpoint(folder, attempt, step, {}, is_readable=False)]
    if isinstance(marker, dict):
        return [SavedCheckpoint(folder, attempt, step, marker)]
    log.warning("Checkpoint ignored, its marker is invalid", extra={"checkpoint": str(folder)})
    return []


def sort_best_first(checkpoints: list[SavedCheckpoint]) -> list[SavedCheckpoint]:
    """Checkpoints that were the best when they were saved: latest attempt first, then lowest loss.

    A best checkpoint of an attempt is better than every checkpoint that the attempt was resumed
    from. An older attempt may have one with a lower loss, but only if it could not be restored.
    """
    best = [checkpoint for checkpoint in checkpoints if checkpoint.marker.get("best")]
    return sorted(best, key=lambda c: (-c.attempt, c.marker["eval_loss"], c.step))
