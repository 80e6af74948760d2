"""Which checkpoints are removed: old complete ones, and folders that earlier attempts left."""

import logging

from finetune_trainer.checkpointing.checkpoint_folder import (
    MARKER,
    attempt_folders,
    list_checkpoints,
    sort_best_first,
)
from finetune_trainer.runtime.fencing import Attempt

log = logging.getLogger("finetune")


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
    for _, attempt_folder in attempt_folders(attempt.job, attempt.number - 1):
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
