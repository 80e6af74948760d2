"""Checkpoints that can be trusted: complete or not there, from this run or not used.

A checkpoint is a folder checkpoints/<attempt>/step-<8 digits>. It is written under another
name, renamed when every rank is done, and counts only once the marker COMPLETE is in it, which
holds the SHA-256 and size of every file. Pods on a dead or partitioned node may run on for a
while, so an attempt claims the job first and looks for later claims before it publishes: a
fenced attempt can waste a device, never corrupt a run.

All functions that take part in saving and resuming are collectives: every rank calls them.
"""

import hashlib
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from finetune_trainer import waiting
from finetune_trainer.stage import RetryableError
from finetune_trainer.strategies import Engine

log = logging.getLogger("finetune")

MARKER = "COMPLETE"
FileList = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Position:
    """Where a run stands; order of data, schedule and epoch all follow from the step."""

    step: int = 0
    loss: float | None = None


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that claims to be complete."""

    folder: Path
    attempt: int
    step: int
    marker: dict[str, Any]


def claim(job: Path, attempt: int) -> None:
    """Take the job for this attempt; rank 0 calls it before anything is written.

    Raises RetryableError when a process of this attempt was here before: it may still run, and
    two processes of one attempt could not be told apart.
    """
    claims = job / "claims"
    claims.mkdir(parents=True, exist_ok=True)
    path = claims / str(attempt)
    try:
        with path.open("x") as file:
            json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
    except FileExistsError:
        raise RetryableError(
            "AttemptAlreadyClaimed",
            f"Attempt {attempt} was started before and may still be running.",
            "Nothing: the next attempt resumes from the last checkpoint.",
            file=str(path),
        ) from None


def require_newest(job: Path, attempt: int) -> None:
    """Raise RetryableError when a later attempt has claimed the job."""
    later = [int(p.name) for p in (job / "claims").iterdir() if p.name.isdigit()]
    if max(later, default=0) > attempt:
        raise RetryableError(
            "Fenced", f"Attempt {max(later)} has taken over from attempt {attempt}."
        )


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(folder: Path, share: int = 0, shares: int = 1) -> FileList:
    """SHA-256 and size of every file below a folder, or of every `shares`-th one of them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    return {
        str(path.relative_to(folder)): {"sha256": sha256(path), "size": path.stat().st_size}
        for path in files[share::shares]
    }


def seal(folder: Path) -> None:
    """Make a folder readable by other users and durable on disk."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        sync(path)


def sync(path: Path) -> None:
    """Make a file or a folder durable on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(
    job: Path,
    attempt: int,
    position: Position,
    engine: Engine,
    fingerprint: dict[str, Any],
    keep_last: int,
) -> Path:
    """Write and publish a checkpoint of all ranks, then drop the oldest ones.

    Raises RetryableError on every rank when a later attempt has claimed the job.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    final = job / "checkpoints" / str(attempt) / f"step-{position.step:08d}"
    partial = final.with_name(f".{final.name}.partial")
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    waiting.barrier()
    engine.save(partial)
    torch.save(_random_states(), partial / f"random-{rank:05d}.pt")
    waiting.barrier()
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        # What a node wrote, only that node can make durable.
        seal(partial)
    shares = waiting.gathered(describe(partial, rank, world))
    fenced = None
    if rank == 0:
        try:
            require_newest(job, attempt)
        except RetryableError as error:
            fenced = error.failure.message
        else:
            files = {name: facts for share in shares for name, facts in share.items()}
            marker = {"fingerprint": fingerprint, "files": files, **asdict(position)}
            _publish(partial, final, marker)
            prune(job, attempt, keep_last)
    fenced = waiting.from_rank_zero(fenced)
    if fenced:
        raise RetryableError("Fenced", fenced)
    return final


def _publish(partial: Path, final: Path, marker: dict[str, Any]) -> None:
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    (final.parent.parent).chmod(0o755)
    final.parent.chmod(0o755)
    sync(final.parent)
    unfinished = final / f".{MARKER}"
    unfinished.write_text(json.dumps(marker))
    unfinished.chmod(0o644)
    sync(unfinished)
    unfinished.rename(final / MARKER)
    sync(final)


def candidates(job: Path, attempt: int) -> list[Candidate]:
    """Complete checkpoints of this and earlier attempts, newest step first."""
    found = []
    for marker in (job / "checkpoints").glob(f"*/step-*/{MARKER}"):
        folder = marker.parent
        if int(folder.parent.name) <= attempt:
            step = int(folder.name.removeprefix("step-"))
            text = marker.read_text()
            found.append(Candidate(folder, int(folder.parent.name), step, json.loads(text)))
    return sorted(found, key=lambda c: (c.step, c.attempt), reverse=True)


def prune(job: Path, attempt: int, keep_last: int) -> None:
    """Remove complete checkpoints beyond the newest `keep_last`, whichever attempt wrote them."""
    for old in candidates(job, attempt)[keep_last:]:
        # Without its marker it is no checkpoint any more, even if removal is cut short.
        (old.folder / MARKER).unlink()
        shutil.rmtree(old.folder, ignore_errors=True)


def _usable(job: Path, attempt: int, fingerprint: dict[str, Any]) -> Iterator[Candidate]:
    for candidate in candidates(job, attempt):
        if candidate.marker.get("fingerprint") == fingerprint:
            yield candidate
        else:
            log.warning("not used, another plan or other data: %s", candidate.folder)


def resume(job: Path, attempt: int, engine: Engine, fingerprint: dict[str, Any]) -> Position:
    """Restore the newest checkpoint whose files are as they were written.

    Returns where the run stands; step 0 where there is no checkpoint.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    found = list(_usable(job, attempt, fingerprint)) if rank == 0 else []
    for candidate in waiting.from_rank_zero(found):
        seen = waiting.gathered(describe(candidate.folder, rank, world))
        files = {name: facts for share in seen for name, facts in share.items()}
        if files != candidate.marker["files"]:
            log.warning("not used, files differ from its marker: %s", candidate.folder)
            continue
        engine.load(candidate.folder)
        _restore_random_states(candidate.folder / f"random-{rank:05d}.pt")
        return Position(step=candidate.step, loss=candidate.marker["loss"])
    return Position()


def _random_states() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random_states(path: Path) -> None:
    states = torch.load(path, map_location="cpu", weights_only=True)
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
