"""Which checkpoints are complete, and how a run continues from one of them.

A checkpoint is a folder checkpoints/<attempt>/step-<8 digits>. The ranks write it in the scratch
folder of their attempt. Once all are done, rank 0 adds the marker file COMPLETE, which lists the
SHA-256 and the size of every file, and publishes the folder with one rename. A folder without a
marker is not a checkpoint. An attempt that was replaced may keep a device busy for a while, but it
cannot publish anything into the run (see `fencing`). `saver` writes checkpoints; this module lists,
restores and removes them. Restoring is a collective: every rank calls it.
"""

import errno
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import distributed as dist

from finetune_trainer.checkpointing import sharded_format
from finetune_trainer.checkpointing.sharded_format import NO_STATEFUL, StatefulByName
from finetune_trainer.distributed import collectives
from finetune_trainer.runtime.errors import RetryableError
from finetune_trainer.runtime.fencing import Attempt, is_attempt_number
from finetune_trainer.runtime.fsync import fsync_path, fsync_tree, sha256_file
from finetune_trainer.strategies import TrainingStrategy

log = logging.getLogger("finetune")

MARKER = "COMPLETE"
FOLDER_NAME = re.compile(r"step-([0-9]{8,})")
UNREADABLE_ERRNOS = (errno.EIO, errno.EUCLEAN, errno.EBADMSG)
"""Errors that a volume returns for a file with a bad block or a wrong checksum."""
FileList = dict[str, dict[str, Any]]
"""SHA-256 and size of files, by path within the checkpoint."""
Fingerprint = dict[str, Any]
"""Identifies the run: only checkpoints with an equal fingerprint are restored."""


@dataclass(frozen=True)
class TrainerState:
    """How far a run has come; the order of the data, the learning rate and the epoch follow from
    the step. The marker of a checkpoint holds these fields by their names."""

    step: int = 0
    loss: float | None = None
    eval_loss: float | None = None
    """Held-out loss, if it was measured after this step."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint folder with a marker; its files have not been verified yet."""

    folder: Path
    attempt: int
    step: int
    marker: dict[str, Any]
    is_readable: bool = True
    """False if the volume returns an error for the marker; `marker` is empty then."""


def hash_files(folder: Path, index: int = 0, stride: int = 1) -> FileList:
    """SHA-256 and size of all files below a folder but the marker, or of every `stride`-th one of
    them from `index` on."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    return {str(path.relative_to(folder)): hash_file(path) for path in files[index::stride]}


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


def list_checkpoints(job: Path, attempt: int) -> list[SavedCheckpoint]:
    """Complete checkpoints of this and earlier attempts, latest step first."""
    checkpoints = []
    for number, attempt_folder in _attempt_folders(job, attempt):
        for folder in _list_folder(attempt_folder):
            if name := FOLDER_NAME.fullmatch(folder.name):
                checkpoints += _read_marker(folder, number, int(name[1]))
    return sorted(checkpoints, key=lambda c: (c.step, c.attempt), reverse=True)


def _attempt_folders(job: Path, attempt: int) -> Iterator[tuple[int, Path]]:
    """Numbers and folders of the attempts up to this one. Other folders do not belong to the run
    and are ignored."""
    for folder in _list_folder(job / "checkpoints"):
        if is_attempt_number(folder.name) and int(folder.name) <= attempt:
            yield int(folder.name), folder


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


def prune_checkpoints(attempt: Attempt, keep_last: int, keep_best: bool = True) -> None:
    """Remove complete checkpoints of all attempts except the `keep_last` written last and the best
    one.

    "Last" goes by attempt, then by step: an attempt that could not use the checkpoint of an earlier
    one saves at lower steps.
    """
    checkpoints = list_checkpoints(attempt.job, attempt.number)
    checkpoints.sort(key=lambda c: (c.attempt, c.step), reverse=True)
    best = sort_best_first(checkpoints)[:1] if keep_best else []
    kept = {checkpoint.folder for checkpoint in (*checkpoints[:keep_last], *best)}
    for old in checkpoints:
        if old.folder not in kept:
            attempt.remove_published(old.folder)


def remove_unfinished(attempt: Attempt) -> None:
    """Remove checkpoint folders without a marker that earlier attempts left. This attempt has
    fenced those, so none of them still writes."""
    for _, attempt_folder in _attempt_folders(attempt.job, attempt.number - 1):
        for folder in attempt_folder.glob("*step-*"):
            try:
                if not (folder / MARKER).exists():
                    attempt.remove_published(folder)
            except OSError as error:
                # It is not restored without a marker, it only takes space.
                log.warning(
                    "An unfinished checkpoint of an earlier attempt was not removed",
                    extra={"checkpoint": str(folder), "error": str(error)},
                )


def sort_best_first(checkpoints: list[SavedCheckpoint]) -> list[SavedCheckpoint]:
    """Checkpoints that were the best when they were saved: latest attempt first, then lowest loss.

    A best checkpoint of an attempt is better than every checkpoint that the attempt was resumed
    from. An older attempt may have one with a lower loss, but only if it could not be restored.
    """
    best = [checkpoint for checkpoint in checkpoints if checkpoint.marker.get("best")]
    return sorted(best, key=lambda c: (-c.attempt, c.marker["eval_loss"], c.step))


def restore_latest(
    job: Path,
    attempt: int,
    strategy: TrainingStrategy,
    fingerprint: Fingerprint,
    stateful: StatefulByName = NO_STATEFUL,
) -> TrainerState:
    """Restore the latest checkpoint whose files match its marker; step 0 if there is none.

    Raises RetryableError VolumeUnavailable if there are checkpoints but the volume cannot read any.
    """
    if dist.get_rank() == 0:
        remove_unfinished(Attempt(job, attempt))
    checkpoints = _list_usable(job, attempt, fingerprint)
    return _restore_first_intact(checkpoints, strategy, stateful) or TrainerState()


def restore_best(
    job: Path, attempt: int, strategy: TrainingStrategy, fingerprint: Fingerprint
) -> TrainerState | None:
    """Restore the checkpoint with the lowest held-out loss; None if no checkpoint is marked best.

    Raises as `restore_latest`.
    """
    checkpoints = sort_best_first(_list_usable(job, attempt, fingerprint))
    return _restore_first_intact(checkpoints, strategy, NO_STATEFUL)


def _list_usable(job: Path, attempt: int, fingerprint: Fingerprint) -> list[SavedCheckpoint]:
    """On rank 0 the checkpoints with the run's fingerprint, and unreadable ones; else empty."""
    if dist.get_rank() != 0:
        return []
    usable = []
    for checkpoint in list_checkpoints(job, attempt):
        if checkpoint.is_readable and checkpoint.marker.get("fingerprint") != fingerprint:
            log.warning(
                "Checkpoint ignored, it belongs to another plan or other data",
                extra={"checkpoint": str(checkpoint.folder)},
            )
        else:
            usable.append(checkpoint)
    return usable


def _restore_first_intact(
    checkpoints: list[SavedCheckpoint], strategy: TrainingStrategy, stateful: StatefulByName
) -> TrainerState | None:
    """Restore the first of rank 0's checkpoints whose files match its marker.

    Each rank hashes its part of the files.
    """
    rank, world_size, unreadable = dist.get_rank(), dist.get_world_size(), None
    for checkpoint in collectives.broadcast_from_rank_zero(checkpoints):
        where = {"checkpoint": str(checkpoint.folder)}
        hashed = None
        if checkpoint.is_readable:
            hashed = _hash_readable(checkpoint.folder, rank, world_size)
        file_lists = collectives.all_gather(hashed)
        if None in file_lists:
            log.warning("Checkpoint ignored, it cannot be read", extra=where)
            unreadable = checkpoint.folder
            continue
        files = {name: facts for part in file_lists for name, facts in part.items()}
        if files != checkpoint.marker["files"]:
            log.warning("Checkpoint ignored, its files differ from its marker", extra=where)
            continue
        state = strategy.state_dict()
        sharded_format.read_shards(checkpoint.folder, state)
        strategy.finish_restore(state)
        sharded_format.load_stateful(checkpoint.folder, stateful)
        marker = checkpoint.marker
        return TrainerState(checkpoint.step, marker["loss"], marker.get("eval_loss"))
    if unreadable:
        # The volume may work again for the next attempt; starting over would lose everything.
        raise RetryableError(
            "VolumeUnavailable",
            "No checkpoint of the job can be read.",
            "Check the volume of the workspace. To start over, delete the job's checkpoints.",
            file=str(unreadable),
        )
    return None


def _hash_readable(folder: Path, index: int, stride: int) -> FileList | None:
    """As `hash_files`; None if the volume returns an error for a file."""
    try:
        return hash_files(folder, index, stride)
    except OSError as error:
        if error.errno not in UNREADABLE_ERRNOS:
            raise
        return None
