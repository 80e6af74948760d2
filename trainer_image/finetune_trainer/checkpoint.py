"""Checkpoints that can be trusted: complete or not there, from this run or not used.

A checkpoint is a folder checkpoints/<attempt>/step-<8 digits>. It is written under another
name, renamed when every rank is done, and counts only once the marker COMPLETE is in it, which
holds the SHA-256 and size of every file. Pods on a dead or partitioned node may run on for a
while, so an attempt claims the job first and looks for later claims before it publishes: a
fenced attempt can waste a device, never corrupt a run. `saving` writes them; this room says what
they are, and reads them. Resuming is a collective: every rank calls it.
"""

import json
import logging
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import distributed as dist

from finetune_trainer import shards, waiting
from finetune_trainer.durable import publish_file, sha256_of, sync
from finetune_trainer.shards import NO_PARTS, Parts
from finetune_trainer.stage import RetryableError
from finetune_trainer.strategies import Engine

log = logging.getLogger("finetune")

MARKER = "COMPLETE"
FileList = dict[str, dict[str, Any]]
Fingerprint = dict[str, Any]
"""What a checkpoint must share with a run to be resumed from."""


@dataclass(frozen=True)
class Position:
    """Where a run stands; order of data, schedule and epoch all follow from the step."""

    step: int = 0
    loss: float | None = None
    eval_loss: float | None = None
    """Held-out loss, where it was looked at after this step."""


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
        sync(path)
        sync(claims)
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


def describe(folder: Path, share: int = 0, shares: int = 1) -> FileList:
    """SHA-256 and size of every file below a folder, or of every `shares`-th one of them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    return {str(path.relative_to(folder)): facts_of(path) for path in files[share::shares]}


def facts_of(path: Path) -> dict[str, Any]:
    """SHA-256 and size of a file."""
    return {"sha256": sha256_of(path), "size": path.stat().st_size}


def publish(partial: Path, final: Path, marker: dict[str, Any]) -> None:
    """Give a checkpoint that is durable on disk its name, and then its marker."""
    shutil.rmtree(final, ignore_errors=True)
    for folder in (partial, final.parent, final.parent.parent):
        folder.chmod(0o755)
    sync(partial)
    partial.rename(final)
    sync(final.parent)
    publish_file(final / MARKER, json.dumps(marker).encode())


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
    """Remove complete checkpoints, whichever attempt wrote them, but the newest `keep_last` and
    the best one."""
    found = candidates(job, attempt)
    kept = {candidate.folder for candidate in (*found[:keep_last], *best_first(found)[:1])}
    for old in found:
        if old.folder not in kept:
            # Without its marker it is no checkpoint any more, even if removal is cut short.
            (old.folder / MARKER).unlink()
            shutil.rmtree(old.folder, ignore_errors=True)


def sweep(job: Path, attempt: int) -> None:
    """Remove what earlier attempts left unfinished; they have been fenced by this one's claim."""
    for folder in (job / "checkpoints").glob("*/*step-*"):
        if int(folder.parent.name) < attempt and not (folder / MARKER).exists():
            shutil.rmtree(folder, ignore_errors=True)


def best_first(found: list[Candidate]) -> list[Candidate]:
    """Those that were the best when they were saved, lowest held-out loss first."""
    judged = [candidate for candidate in found if candidate.marker.get("best")]
    return sorted(judged, key=lambda candidate: (candidate.marker["eval_loss"], candidate.step))


def resume(
    job: Path, attempt: int, engine: Engine, fingerprint: Fingerprint, parts: Parts = NO_PARTS
) -> Position:
    """Restore the newest checkpoint whose files are as they were written.

    Returns where the run stands; step 0 where there is no checkpoint.
    """
    if dist.get_rank() == 0:
        sweep(job, attempt)
    return _restore(_usable(job, attempt, fingerprint), engine, parts) or Position()


def restore_best(
    job: Path, attempt: int, engine: Engine, fingerprint: Fingerprint
) -> Position | None:
    """Restore the checkpoint with the lowest held-out loss; None where none was judged."""
    return _restore(best_first(_usable(job, attempt, fingerprint)), engine, NO_PARTS)


def _usable(job: Path, attempt: int, fingerprint: Fingerprint) -> list[Candidate]:
    if dist.get_rank() != 0:
        return []
    found = candidates(job, attempt)
    for other in [c for c in found if c.marker.get("fingerprint") != fingerprint]:
        log.warning("not used, another plan or other data: %s", other.folder)
        found.remove(other)
    return found


def _restore(found: list[Candidate], engine: Engine, parts: Parts) -> Position | None:
    """Restore the first of rank 0's candidates that is whole."""
    rank, world = dist.get_rank(), dist.get_world_size()
    for candidate in waiting.from_rank_zero(found):
        seen = waiting.gathered(describe(candidate.folder, rank, world))
        files = {name: facts for share in seen for name, facts in share.items()}
        if files != candidate.marker["files"]:
            log.warning("not used, files differ from its marker: %s", candidate.folder)
            continue
        state = engine.state()
        shards.read(candidate.folder, state)
        engine.restored(state)
        shards.read_parts(candidate.folder, parts)
        marker = candidate.marker
        return Position(candidate.step, marker["loss"], marker.get("eval_loss"))
    return None
