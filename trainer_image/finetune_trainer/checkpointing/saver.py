"""Checkpoints beside training: no step waits for a disk, and hardly one for a copy.

A thread copies what this rank holds to a room in host memory that is kept for the whole run, while
the next step computes: weights change only when that step is taken, and `settle` waits until then.
The thread writes the copy, makes it durable and takes its digests. At every step boundary the ranks
ask each other, in their main threads, whether all are done; then rank 0's thread looks for later
attempts, publishes with the marker last, and prunes. So no thread ever takes part in a collective,
a checkpoint counts only once every rank's part is on disk, and what fails in a thread fails the
next step. Only a full volume does not: training goes on with the older checkpoint, and the next
save is tried at its time. All methods but `due` and `settle` are collectives.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from finetune_api.finetunejob import Checkpointing
from finetune_api.run import Failure
from torch import distributed as dist

from finetune_trainer.checkpointing import sharded_format
from finetune_trainer.checkpointing.restore import (
    FileList,
    Fingerprint,
    Position,
    facts_of,
    prune,
    publish,
)
from finetune_trainer.checkpointing.sharded_format import NO_PARTS, Parts
from finetune_trainer.distributed import collectives
from finetune_trainer.runtime.errors import NO_SPACE_LEFT, RetryableError, failure_of, free_bytes
from finetune_trainer.runtime.fencing import Attempt, discard
from finetune_trainer.runtime.fsync import seal
from finetune_trainer.strategies import TrainingStrategy

log = logging.getLogger("finetune")


@dataclass
class Pending:
    """A checkpoint that is under way."""

    position: Position
    best: bool
    must: bool
    """Whether a full volume fails the attempt, once all that may go has gone."""
    begun: float
    """By the monotonic clock."""
    partial: Path
    work: "Future[Any]"
    others: bytes | None
    files: FileList | None = None
    """Of all ranks, once they have been written."""
    again: bool = False
    """Whether this is the second try."""


@dataclass
class Cost:
    """Seconds that one checkpoint took on this rank."""

    step: int
    waited: float
    """Training stood still."""
    wrote: float = field(default=0.0)
    """The thread was busy."""


class Saver:
    """Writes the checkpoints of one attempt."""

    def __init__(
        self,
        job: Path,
        attempt: int,
        engine: TrainingStrategy,
        fingerprint: Fingerprint,
        settings: Checkpointing,
        parts: Parts = NO_PARTS,
    ) -> None:
        self._folder = job / "checkpoints" / str(attempt)
        self._attempt = Attempt(job, attempt)
        self._engine, self._parts = engine, parts
        self._fingerprint, self._settings = fingerprint, settings
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Pending | None = None
        self._copied = threading.Event()
        self._copied.set()
        self._saved_at = time.monotonic()
        self._news: dict[str, Any] = {}
        self._left_out = False
        self.costs: list[Cost] = []
        """Of every checkpoint begun, in order."""
        # Fresh memory costs more than copying: it is taken before the first step needs it.
        self._room = self._thread.submit(make_room, self._own())

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is under way; the same on all ranks."""
        return self._pending is not None

    def due(self) -> bool:
        """Whether this rank's clock says that the last checkpoint is old; ask rank 0's."""
        minutes = self._settings.interval_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def save(self, position: Position, best: bool = False, must: bool = False) -> None:
        """Begin a checkpoint; waits for the one before it.

        `best` keeps it until a better one. On a full volume one that `must` be written has all
        older ones removed that nothing needs, and then fails with RetryableError NoSpaceLeft; any
        other is left out.
        """
        begun = time.monotonic()
        self.finish()
        room, own = self._room.result(), self._own()
        ready = torch.cuda.Event() if any(values.is_cuda for values in own.values()) else None
        if ready:
            ready.record()
        others = (
            sharded_format.parts_state(self._parts) if self._parts and self._rank == 0 else None
        )
        self._copied.clear()
        self._saved_at = time.monotonic()
        self.costs.append(Cost(position.step, self._saved_at - begun))
        partial = self._attempt.scratch / name_of(position)
        work = self._thread.submit(self._copy_and_write, partial, own, room, ready, others)
        self._pending = Pending(position, best, must, begun, partial, work, others)

    def settle(self) -> None:
        """Wait until a checkpoint under way no longer looks at the weights; call it before they
        change."""
        if not self._copied.is_set():
            started = time.monotonic()
            self._copied.wait()
            self.costs[-1].waited += time.monotonic() - started

    def look(self) -> dict[str, Any]:
        """Move a checkpoint on that is under way; returns what is new of it, as Progress names it.

        Raises on every rank what failed on any: RetryableError Fenced where a later attempt has
        claimed the job.
        """
        if self._pending and not collectives.any_rank(not self._pending.work.done()):
            self._move_on(self._pending)
        news, self._news = self._news, {}
        return news

    def finish(self) -> None:
        """Wait until nothing is under way; `look` tells what came of it."""
        while self._pending:
            self._move_on(self._pending)

    def close(self) -> None:
        """Finish, and let go of the memory."""
        self.finish()
        self._room.result().clear()
        self._thread.shutdown()

    def _move_on(self, pending: Pending) -> None:
        outcomes = collectives.gathered(outcome_of(pending.work))
        failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        for failed in failures:
            if failed.reason != NO_SPACE_LEFT:
                raise retryable(failed)
        if failures:
            self._without_room(pending, failures[0])
        elif pending.files is None:
            pending.files = {name: facts for files in outcomes for name, facts in files.items()}
            pending.work = self._thread.submit(self._publish, pending)
        else:
            self._pending = None
            # Rank 0 has published it, by its own clock.
            self._told(pending, seconds=outcomes[0])

    def _told(self, pending: Pending, seconds: float) -> None:
        assert pending.files is not None
        if self._left_out:
            self._news["message"], self._left_out = "training", False
        self._news |= {
            "last_checkpoint_step": pending.position.step,
            "checkpoint_seconds": round(seconds, 3),
            "checkpoint_bytes": sum(int(facts["size"]) for facts in pending.files.values()),
        }
        cost = self.costs[-1]
        text = "checkpoint of step %d: training waited %.3f s, writing took %.2f s"
        log.info(text, cost.step, cost.waited, cost.wrote)

    def _without_room(self, pending: Pending, failed: Failure) -> None:
        """Leave a checkpoint out, or make room for it and try once more."""
        size = sum(collectives.gathered(size_of(self._room.result(), pending.others)))
        if pending.must and pending.again:
            raise retryable(self._too_large(pending, size, failed))
        self._on_first(lambda: self._make_space(pending))
        if pending.must:
            pending.again, pending.files = True, None
            room = self._room.result()
            pending.work = self._thread.submit(self._write, pending.partial, room, pending.others)
            return
        self._pending, self._left_out = None, True
        step = pending.position.step
        self._news["message"] = (
            f"training; the checkpoint of step {step} was left out: the volume has no room for its "
            f"{size} bytes"
        )
        log.warning("%s", self._news["message"])

    def _make_space(self, pending: Pending) -> None:
        """Remove what is half-written, and for a checkpoint that must be written older ones."""
        discard(pending.partial)
        if pending.must:
            prune(self._attempt, keep_last=1, keep_best=not pending.best)

    def _too_large(self, pending: Pending, size: int, failed: Failure) -> Failure:
        self._on_first(lambda: discard(pending.partial))
        free = collectives.from_rank_zero(free_bytes(self._attempt.job))
        message = (
            f"The checkpoint of step {pending.position.step} needs {size} bytes and the volume has "
            f"{free} free, although all but the newest complete checkpoint were removed."
        )
        return failed.model_copy(update={"message": message, "file": str(self._folder)})

    def _on_first(self, work: Callable[[], None]) -> None:
        """Rank 0 does it while all wait; what fails there fails everywhere."""
        failed = None
        if self._rank == 0:
            try:
                work()
            except Exception as error:
                failed = failure_of(error)[0]
        if failed := collectives.from_rank_zero(failed):
            raise retryable(failed)

    def _own(self) -> dict[str, torch.Tensor]:
        return sharded_format.own_part(self._engine.state(), self._rank, self._world)

    def _copy_and_write(
        self,
        partial: Path,
        own: dict[str, torch.Tensor],
        room: dict[str, torch.Tensor],
        ready: Any,
        others: bytes | None,
    ) -> FileList:
        try:
            copy(own, room, ready)
        finally:
            self._copied.set()
        return self._write(partial, room, others)

    def _write(self, partial: Path, room: dict[str, torch.Tensor], others: Any) -> FileList:
        started = time.monotonic()
        with self._attempt.guarded():
            # Not its parents: the scratch folder of an attempt that was replaced stays away.
            partial.mkdir(exist_ok=True)
            written = [sharded_format.write(partial, self._rank, room)] if room else []
            if others is not None:
                written.append(partial / sharded_format.OTHERS)
                written[-1].write_bytes(others)
            for path in written:
                seal(path)
            files = {path.name: facts_of(path) for path in written}
        self.costs[-1].wrote = time.monotonic() - started
        return files

    def _publish(self, pending: Pending) -> float:
        """Seconds from the decision to save to the complete checkpoint, on rank 0."""
        if self._rank != 0:
            return 0.0
        marker = {
            "fingerprint": self._fingerprint,
            "files": pending.files,
            "best": pending.best,
            **asdict(pending.position),
        }
        final = self._folder / name_of(pending.position)
        publish(self._attempt, pending.partial, final, marker)
        seconds = time.monotonic() - pending.begun
        try:
            prune(self._attempt, self._settings.keep_last)
        except OSError as error:
            # The new one is complete; the next one tries to remove the old ones again.
            log.warning("older checkpoints are still there: %s", error)
        return seconds


def name_of(position: Position) -> str:
    """Folder name of a checkpoint."""
    return f"step-{position.step:08d}"


def size_of(room: dict[str, torch.Tensor], others: bytes | None) -> int:
    """Bytes that this rank has to write."""
    return sum(int(values.nbytes) for values in room.values()) + len(others or b"")


def retryable(failure: Failure) -> RetryableError:
    """The error that every rank raises."""
    return RetryableError(failure.reason, failure.message, failure.remedy, file=failure.file)


def make_room(own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Host memory for a copy; pinned where a device can copy straight into it."""
    pinned = torch.cuda.is_available()
    return {
        entry: torch.zeros(values.shape, dtype=values.dtype, pin_memory=pinned)
        for entry, values in own.items()
    }


def copy(own: dict[str, torch.Tensor], room: dict[str, torch.Tensor], ready: Any) -> None:
    """Copy `own` to `room`; from a device on a stream of its own, once `ready` has come there."""
    device = next((values.device for values in own.values() if values.is_cuda), None)
    stream = torch.cuda.Stream(device) if device else None
    with torch.no_grad(), torch.cuda.stream(stream) if stream else contextlib.nullcontext():
        if ready:
            ready.wait()
        for entry, values in own.items():
            room[entry].copy_(values, non_blocking=True)
        if stream:
            stream.synchronize()


def outcome_of(work: "Future[Any]") -> Any:
    """What a thread's work gave, or the Failure that all ranks must raise."""
    try:
        return work.result()
    except Exception as error:
        log.exception("a checkpoint could not be written")
        return failure_of(error)[0]
