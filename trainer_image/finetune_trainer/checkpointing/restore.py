"""How a run continues from one of its checkpoints.

Only a complete checkpoint whose fingerprint is the run's is restored, and only after the ranks have
verified its files. Restoring is a collective: every rank calls it.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import distributed as dist

from finetune_trainer.checkpointing import sharded_format
from finetune_trainer.checkpointing.checkpoint_folder import (
    UNREADABLE_ERRNOS,
    FileList,
    SavedCheckpoint,
    hash_listed_files,
    list_checkpoints,
    sort_best_first,
)
from finetune_trainer.checkpointing.retention import remove_unfinished
from finetune_trainer.checkpointing.sharded_format import NO_STATEFUL, StatefulByName
from finetune_trainer.distributed import collectives
from finetune_trainer.runtime.errors import RetryableError
from finetune_trainer.runtime.fencing import Attempt
from finetune_trainer.strategies import TrainingStrategy

log = logging.getLogger("finetune")

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
            hashed = _hash_readable(checkpoint, rank, world_size)
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
        sharded_format.read_shards(checkpoint.folder, files, state)
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


def _hash_readable(checkpoint: SavedCheckpoint, index: int, stride: int) -> FileList | None:
    """As `hash_listed_files`, of the files in the marker; None if the volume returns an error for
    one."""
    try:
        return hash_listed_files(checkpoint.folder, checkpoint.marker["files"], index, stride)
    except OSError as error:
        if error.errno not in UNREADABLE_ERRNOS:
            raise
        return None
