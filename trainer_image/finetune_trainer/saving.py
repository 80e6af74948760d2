"""Checkpoints beside training: no step waits for a disk, and hardly one for a copy.

A thread copies what this rank holds to a room in host memory that is kept for the whole run, while
the next step computes: weights change only when that step is taken, and `settle` waits until then.
The thread writes the copy, makes it durable and takes its digests. At every step boundary the ranks
ask each other, in their main threads, whether all are done; then rank 0's thread looks for later
attempts, publishes with the marker last, and prunes. So no thread ever takes part in a collective,
a checkpoint counts only once every rank's part is on disk, and what fails in a thread fails the
next step. All methods but `due` and `settle` are collectives.
"""

import contextlib
import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from finetune_api.finetunejob import Checkpointing
from finetune_api.run import Failure
from torch import distributed as dist

from finetune_trainer import shards, waiting
from finetune_trainer.checkpoint import (
    FileList,
    Fingerprint,
    Position,
    facts_of,
    prune,
    publish,
    require_newest,
)
from finetune_trainer.durable import seal
from finetune_trainer.shards import NO_PARTS, Parts
from finetune_trainer.stage import RetryableError, failure_of
from finetune_trainer.strategies import Engine

log = logging.getLogger("finetune")


@dataclass
class Pending:
    """A checkpoint that is under way."""

    position: Position
    best: bool
    work: "Future[Any]"
    files: FileList | None = None
    """Of all ranks, once they have been written."""


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
        engine: Engine,
        fingerprint: Fingerprint,
        settings: Checkpointing,
        parts: Parts = NO_PARTS,
    ) -> None:
        self._folder = job / "checkpoints" / str(attempt)
        self._job, self._attempt = job, attempt
        self._engine, self._parts = engine, parts
        self._fingerprint, self._settings = fingerprint, settings
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Pending | None = None
        self._copied = threading.Event()
        self._copied.set()
        self._saved_at = time.monotonic()
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

    def save(self, position: Position, best: bool = False) -> None:
        """Begin a checkpoint; waits for the one before it. `best` keeps it until a better one."""
        started = time.monotonic()
        self.finish()
        room, own = self._room.result(), self._own()
        ready = torch.cuda.Event() if any(values.is_cuda for values in own.values()) else None
        if ready:
            ready.record()
        others = shards.parts_state(self._parts) if self._parts and self._rank == 0 else None
        self._copied.clear()
        self._saved_at = time.monotonic()
        self.costs.append(Cost(position.step, self._saved_at - started))
        partial = self._partial(position)
        work = self._thread.submit(self._write, partial, own, room, ready, others)
        self._pending = Pending(position, best, work)

    def settle(self) -> None:
        """Wait until a checkpoint under way no longer looks at the weights; call it before they
        change."""
        if not self._copied.is_set():
            started = time.monotonic()
            self._copied.wait()
            self.costs[-1].waited += time.monotonic() - started

    def look(self) -> int | None:
        """Move a checkpoint on that is under way; returns its step once it is published.

        Raises on every rank what failed on any: RetryableError Fenced where a later attempt has
        claimed the job.
        """
        if not self._pending or waiting.any_rank(not self._pending.work.done()):
            return None
        return self._move_on(self._pending)

    def finish(self) -> int | None:
        """Wait until nothing is under way; returns the step that was published by it."""
        step = None
        while self._pending:
            step = self._move_on(self._pending)
        return step

    def close(self) -> None:
        """Finish, and let go of the memory."""
        self.finish()
        self._room.result().clear()
        self._thread.shutdown()

    def _move_on(self, pending: Pending) -> int | None:
        outcomes = waiting.gathered(outcome_of(pending.work))
        for failed in outcomes:
            if isinstance(failed, Failure):
                raise RetryableError(failed.reason, failed.message, failed.remedy, file=failed.file)
        if pending.files is not None:
            self._pending = None
            cost = self.costs[-1]
            text = "checkpoint of step %d: training waited %.3f s, writing took %.2f s"
            log.info(text, cost.step, cost.waited, cost.wrote)
            return pending.position.step
        pending.files = {name: facts for files in outcomes for name, facts in files.items()}
        pending.work = self._thread.submit(self._publish, pending)
        return None

    def _own(self) -> dict[str, torch.Tensor]:
        return shards.own_part(self._engine.state(), self._rank, self._world)

    def _partial(self, position: Position) -> Path:
        return self._folder / f".{name_of(position)}.partial"

    def _write(
        self,
        partial: Path,
        own: dict[str, torch.Tensor],
        room: dict[str, torch.Tensor],
        ready: Any,
        others: Any,
    ) -> FileList:
        started = time.monotonic()
        try:
            copy(own, room, ready)
        finally:
            self._copied.set()
        # Ranks need not wait for each other: this attempt is the only one to write here.
        partial.mkdir(parents=True, exist_ok=True)
        written = [shards.write(partial, self._rank, room)] if room else []
        if others is not None:
            written.append(partial / shards.OTHERS)
            written[-1].write_bytes(others)
        for path in written:
            seal(path)
        files = {path.name: facts_of(path) for path in written}
        self.costs[-1].wrote = time.monotonic() - started
        return files

    def _publish(self, pending: Pending) -> FileList:
        if self._rank == 0:
            require_newest(self._job, self._attempt)
            marker = {
                "fingerprint": self._fingerprint,
                "files": pending.files,
                "best": pending.best,
                **asdict(pending.position),
            }
            position = pending.position
            publish(self._partial(position), self._folder / name_of(position), marker)
            prune(self._job, self._attempt, self._settings.keep_last)
        return {}


def name_of(position: Position) -> str:
    """Folder name of a checkpoint."""
    return f"step-{position.step:08d}"


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
