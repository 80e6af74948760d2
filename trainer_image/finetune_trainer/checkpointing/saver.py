"""Saves checkpoints alongside training: a step never waits for a disk, and hardly for a copy.

A thread copies the shard of this rank into a staging buffer while the next step computes. The
buffer is host memory, allocated once for the whole run. Weights change only when that step is
applied, and `wait_for_staging` waits for the copy before that. The thread then writes the buffer to
a file, makes it durable and hashes it. At every step boundary the main threads of the ranks agree
whether all files are written; then the thread of rank 0 publishes the checkpoint, marker last, and
prunes older ones. So no thread takes part in a collective, a checkpoint is complete only when the
files of all ranks are on disk, and an error in a thread fails the next step. The exception is a
full volume: training continues with the older checkpoint, and the next one is tried when it is due.
All methods but `is_due` and `wait_for_staging` are collectives.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from finetune_api.failure import Failure
from finetune_api.finetunejob import Checkpointing
from torch import distributed as dist

from finetune_trainer.checkpointing import sharded_format
from finetune_trainer.checkpointing.checkpoint_folder import FileList, hash_file, publish_checkpoint
from finetune_trainer.checkpointing.restore import Fingerprint, TrainerState
from finetune_trainer.checkpointing.retention import prune_checkpoints
from finetune_trainer.checkpointing.sharded_format import NO_STATEFUL, StatefulByName
from finetune_trainer.distributed import collectives
from finetune_trainer.runtime.errors import NO_SPACE_LEFT, RetryableError, classify_error
from finetune_trainer.runtime.fencing import Attempt, remove_quietly
from finetune_trainer.runtime.free_space import free_bytes_of_nearest
from finetune_trainer.runtime.fsync import fsync_tree
from finetune_trainer.strategies import TrainingStrategy

log = logging.getLogger("finetune")


@dataclass
class PendingCheckpoint:
    """A checkpoint that is being staged, written or published."""

    state: TrainerState
    is_best: bool
    is_required: bool
    """Whether the attempt fails if the volume stays full after older checkpoints are removed."""
    started: float
    """By the monotonic clock."""
    partial: Path
    """The unfinished folder, in the scratch folder of the attempt."""
    work: "Future[Any]"
    """What the thread does now: writing (gives a FileList), then publishing (gives seconds)."""
    stateful: bytes | None
    """Content of the file of stateful objects; rank 0 only."""
    files: FileList | None = None
    """The files of all ranks, once they are written."""
    is_retry: bool = False


@dataclass
class SaveTiming:
    """How long one checkpoint took on this rank."""

    step: int
    blocked_seconds: float
    """Training waited."""
    write_seconds: float = 0.0
    """The thread wrote and hashed files."""


class Saver:
    """Saves the checkpoints of one attempt."""

    def __init__(
        self,
        job: Path,
        attempt: int,
        strategy: TrainingStrategy,
        fingerprint: Fingerprint,
        settings: Checkpointing,
        stateful: StatefulByName = NO_STATEFUL,
    ) -> None:
        self._folder = job / "checkpoints" / str(attempt)
        self._attempt = Attempt(job, attempt)
        self._strategy, self._stateful = strategy, stateful
        self._fingerprint, self._settings = fingerprint, settings
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: PendingCheckpoint | None = None
        self._staged = threading.Event()
        self._staged.set()
        self._saved_at = time.monotonic()
        self._progress: dict[str, Any] = {}
        self._has_skipped = False
        self.timings: list[SaveTiming] = []
        """One for each checkpoint that was started, in order."""
        # Touching fresh memory takes longer than copying, so it is allocated before the first save.
        self._staging_buffer = self._thread.submit(allocate_staging_buffer, self._own_shard())

    def is_due(self) -> bool:
        """Whether the last save is `intervalMinutes` ago by this rank's clock; use rank 0's."""
        minutes = self._settings.interval_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def save(self, state: TrainerState, is_best: bool = False, is_required: bool = False) -> None:
        """Start saving; first waits for the checkpoint before this one.

        `is_best` keeps it until a better one is saved. If the volume is full, a checkpoint that
        `is_required` has older ones removed to free space, and raises RetryableError NoSpaceLeft if
        that is not enough; any other checkpoint is skipped.
        """
        started = time.monotonic()
        self.wait_until_saved()
        buffer, shard = self._staging_buffer.result(), self._own_shard()
        # The copy runs on a stream of its own, after the kernels that computed the weights.
        on_device = any(values.is_cuda for values in shard.values())
        ready = torch.cuda.Event() if on_device else None
        if ready:
            ready.record()
        stateful = (
            sharded_format.serialize_stateful(self._stateful)
            if self._stateful and self._rank == 0
            else None
        )
        self._staged.clear()
        self._saved_at = time.monotonic()
        self.timings.append(SaveTiming(state.step, self._saved_at - started))
        partial = self._attempt.scratch / folder_name(state)
        work = self._thread.submit(self._stage_and_write, partial, shard, buffer, ready, stateful)
        self._pending = PendingCheckpoint(
            state, is_best, is_required, started, partial, work, stateful
        )

    def wait_for_staging(self) -> None:
        """Wait until the shard is copied; call it before the weights change."""
        if not self._staged.is_set():
            started = time.monotonic()
            self._staged.wait()
            self.timings[-1].blocked_seconds += time.monotonic() - started

    def poll(self) -> dict[str, Any]:
        """Advance the checkpoint in progress; returns changed fields of Progress.

        Raises on every rank the error of any rank: RetryableError Fenced if a later attempt has
        replaced this one.
        """
        if self._pending and not collectives.any_rank(not self._pending.work.done()):
            self._advance(self._pending)
        progress, self._progress = self._progress, {}
        return progress

    def wait_until_saved(self) -> None:
        """Wait until no checkpoint is in progress; `poll` then returns the outcome."""
        while self._pending:
            self._advance(self._pending)

    def close(self) -> None:
        """Wait as `wait_until_saved`, then free the staging buffer."""
        self.wait_until_saved()
        self._staging_buffer.result().clear()
        self._thread.shutdown()

    def _advance(self, pending: PendingCheckpoint) -> None:
        results = collectives.all_gather(result_or_failure(pending.work))
        failures = [result for result in results if isinstance(result, Failure)]
        for failure in failures:
            if failure.reason != NO_SPACE_LEFT:
                raise retryable(failure)
        if failures:
            self._handle_full_volume(pending, failures[0])
        elif pending.files is None:
            pending.files = {name: facts for files in results for name, facts in files.items()}
            pending.work = self._thread.submit(self._publish, pending)
        else:
            self._pending = None
            # Rank 0 has published it and has measured the time by its own clock.
            self._report_saved(pending, seconds=results[0])

    def _report_saved(self, pending: PendingCheckpoint, seconds: float) -> None:
        assert pending.files is not None
        if self._has_skipped:
            self._progress["message"], self._has_skipped = "training", False
        self._progress |= {
            "last_checkpoint_step": pending.state.step,
            "checkpoint_seconds": round(seconds, 3),
            "checkpoint_bytes": sum(int(facts["size"]) for facts in pending.files.values()),
        }
        timing = self.timings[-1]
        log.info(
            "Saved a checkpoint",
            extra={
                "step": timing.step,
                "blocked_seconds": round(timing.blocked_seconds, 3),
                "write_seconds": round(timing.write_seconds, 2),
            },
        )

    def _handle_full_volume(self, pending: PendingCheckpoint, failure: Failure) -> None:
        """Skip the checkpoint; if it is required, free space and write it once more."""
        buffer = self._staging_buffer.result()
        size = sum(collectives.all_gather(size_bytes(buffer, pending.stateful)))
        if pending.is_required and pending.is_retry:
            raise retryable(self._too_large(pending, size, failure))
        self._run_on_rank_zero(lambda: self._free_space(pending))
        if pending.is_required:
            pending.is_retry, pending.files = True, None
            pending.work = self._thread.submit(
                self._write, pending.partial, buffer, pending.stateful
            )
            return
        self._pending, self._has_skipped = None, True
        step = pending.state.step
        self._progress["message"] = (
            f"training; skipped the checkpoint of step {step}: the volume has no space for its "
            f"{size} bytes"
        )
        log.warning(
            "Skipped a checkpoint, the volume is full", extra={"step": step, "size_bytes": size}
        )

    def _free_space(self, pending: PendingCheckpoint) -> None:
        """Remove the partial checkpoint and, if it is required, older ones."""
        remove_quietly(pending.partial)
        if pending.is_required:
            prune_checkpoints(self._attempt, keep_last=1, keep_best=not pending.is_best)

    def _too_large(self, pending: PendingCheckpoint, size: int, failure: Failure) -> Failure:
        self._run_on_rank_zero(lambda: remove_quietly(pending.partial))
        free = collectives.broadcast_from_rank_zero(free_bytes_of_nearest(self._attempt.job))
        message = (
            f"The checkpoint of step {pending.state.step} needs {size} bytes and the volume has "
            f"{free} free, although all but the newest complete checkpoint were removed."
        )
        return failure.model_copy(update={"message": message, "file": str(self._folder)})

    def _run_on_rank_zero(self, work: Callable[[], None]) -> None:
        """Run `work` on rank 0 while the others wait; an error there is raised on every rank."""
        failure = None
        if self._rank == 0:
            try:
                work()
            except Exception as error:
                failure = classify_error(error)[0]
        if failure := collectives.broadcast_from_rank_zero(failure):
            raise retryable(failure)

    def _own_shard(self) -> dict[str, torch.Tensor]:
        return sharded_format.own_shard(self._strategy.state_dict(), self._rank, self._world_size)

    def _stage_and_write(
        self,
        partial: Path,
        shard: dict[str, torch.Tensor],
        buffer: dict[str, torch.Tensor],
        ready: Any,
        stateful: bytes | None,
    ) -> FileList:
        try:
            copy_to_staging(shard, buffer, ready)
        finally:
            self._staged.set()
        return self._write(partial, buffer, stateful)

    def _write(
        self, partial: Path, buffer: dict[str, torch.Tensor], stateful: bytes | None
    ) -> FileList:
        started = time.monotonic()
        with self._attempt.fencing_errors():
            # Without parents=True: the scratch folder of a replaced attempt must not come back.
            partial.mkdir(exist_ok=True)
            paths = [sharded_format.write_shard(partial, self._rank, buffer)] if buffer else []
            if stateful is not None:
                paths.append(partial / sharded_format.STATEFUL_FILE)
                paths[-1].write_bytes(stateful)
            for path in paths:
                fsync_tree(path)
            files = {path.name: hash_file(path) for path in paths}
        self.timings[-1].write_seconds = time.monotonic() - started
        return files

    def _publish(self, pending: PendingCheckpoint) -> float:
        """On rank 0: publish and prune; returns the seconds from `save` to the published
        checkpoint."""
        if self._rank != 0:
            return 0.0
        marker = {
            "fingerprint": self._fingerprint,
            "files": pending.files,
            "best": pending.is_best,
            **asdict(pending.state),
        }
        final = self._folder / folder_name(pending.state)
        publish_checkpoint(self._attempt, pending.partial, final, marker)
        seconds = time.monotonic() - pending.started
        try:
            prune_checkpoints(self._attempt, self._settings.keep_last)
        except OSError as error:
            # The new checkpoint is complete; the next save tries to remove the old ones again.
            log.warning("Older checkpoints were not removed", extra={"error": str(error)})
        return seconds


def folder_name(state: TrainerState) -> str:
    return f"step-{state.step:08d}"


def size_bytes(buffer: dict[str, torch.Tensor], stateful: bytes | None) -> int:
    """Bytes that this rank writes."""
    return sum(int(values.nbytes) for values in buffer.values()) + len(stateful or b"")


def retryable(failure: Failure) -> RetryableError:
    """The error that every rank raises for a failure of any rank."""
    return RetryableError(failure.reason, failure.message, failure.remedy, file=failure.file)


def allocate_staging_buffer(shard: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Host memory for a copy of the shard, pinned if a GPU can copy straight into it."""
    pinned = torch.cuda.is_available()
    return {
        entry: torch.zeros(values.shape, dtype=values.dtype, pin_memory=pinned)
        for entry, values in shard.items()
    }


def copy_to_staging(
    shard: dict[str, torch.Tensor], buffer: dict[str, torch.Tensor], ready: Any
) -> None:
    """Copy the shard into the buffer, and wait for it. From a GPU the copy runs on a stream of its
    own, after the event `ready`."""
    device = next((values.device for values in shard.values() if values.is_cuda), None)
    stream = torch.cuda.Stream(device) if device else None
    with torch.no_grad(), torch.cuda.stream(stream) if stream else contextlib.nullcontext():
        if ready:
            ready.wait()
        for entry, values in shard.items():
            buffer[entry].copy_(values, non_blocking=True)
        if stream:
            stream.synchronize()


def result_or_failure(work: "Future[Any]") -> Any:
    """The result of a thread's work, or the Failure that all ranks must raise."""
    try:
        return work.result()
    except Exception as error:
        log.exception("Writing a checkpoint failed")
        return classify_error(error)[0]
