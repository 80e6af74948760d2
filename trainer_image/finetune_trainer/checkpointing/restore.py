"""Checkpoints that can be trusted: complete or not there, from this run or not used.

A checkpoint is a folder checkpoints/<attempt>/step-<8 digits>. It is written in the scratch
folder of its attempt, gets the marker COMPLETE when every rank is done, which holds the SHA-256
and size of every file, and comes to its place by one rename; without a marker it does not count.
An attempt that was replaced can waste a device, never corrupt a run (`fencing`). `saving` writes
checkpoints; this room says what they are, and reads them. Resuming is a collective: every rank
calls it.
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
from finetune_trainer.checkpointing.sharded_format import NO_PARTS, Parts
from finetune_trainer.distributed import collectives
from finetune_trainer.runtime.errors import RetryableError
from finetune_trainer.runtime.fencing import Attempt, is_number
from finetune_trainer.runtime.fsync import seal, sha256_of, sync
from finetune_trainer.strategies import TrainingStrategy

log = logging.getLogger("finetune")

MARKER = "COMPLETE"
NAME = re.compile(r"step-([0-9]{8,})")
UNREADABLE = (errno.EIO, errno.EUCLEAN, errno.EBADMSG)
"""What a volume says of a file with a bad block or a false checksum."""
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
    readable: bool = True
    """Not where the volume gives an error for the marker, which is empty then."""


def describe(folder: Path, share: int = 0, shares: int = 1) -> FileList:
    """SHA-256 and size of every file below a folder, or of every `shares`-th one of them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    return {str(path.relative_to(folder)): facts_of(path) for path in files[share::shares]}


def facts_of(path: Path) -> dict[str, Any]:
    """SHA-256 and size of a file."""
    return {"sha256": sha256_of(path), "size": path.stat().st_size}


def publish(attempt: Attempt, partial: Path, final: Path, marker: dict[str, Any]) -> None:
    """Give a checkpoint whose files are durable its marker, and then its name."""
    with attempt.guarded():
        (partial / MARKER).write_text(json.dumps(marker))
        seal(partial / MARKER)
        partial.chmod(0o755)
        sync(partial)
    final.parent.mkdir(parents=True, exist_ok=True)
    for folder in (final.parent, final.parent.parent):
        folder.chmod(0o755)
    attempt.publish(partial, final)


def candidates(job: Path, attempt: int) -> list[Candidate]:
    """Complete checkpoints of this and earlier attempts, newest step first."""
    found = []
    for number, writer in _writers(job, attempt):
        for folder in _inside(writer):
            if name := NAME.fullmatch(folder.name):
                found += _claimed(folder, number, int(name[1]))
    return sorted(found, key=lambda c: (c.step, c.attempt), reverse=True)


def _writers(job: Path, attempt: int) -> Iterator[tuple[int, Path]]:
    """Numbers and folders of the attempts up to this one; what else lies there is not ours."""
    for folder in _inside(job / "checkpoints"):
        if is_number(folder.name) and int(folder.name) <= attempt:
            yield int(folder.name), folder


def _inside(folder: Path) -> list[Path]:
    """What is in a folder. One that cannot be read must not pass for an empty one, as it does
    with `glob`: the run would begin anew, and remove what it has."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _claimed(folder: Path, attempt: int, step: int) -> list[Candidate]:
    """The checkpoint in a folder, if it claims to be complete."""
    try:
        marker = json.loads((folder / MARKER).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except ValueError:
        marker = None
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        return [Candidate(folder, attempt, step, {}, readable=False)]
    if isinstance(marker, dict):
        return [Candidate(folder, attempt, step, marker)]
    log.warning("not used, its marker cannot be read: %s", folder)
    return []


def prune(attempt: Attempt, keep_last: int, keep_best: bool = True) -> None:
    """Remove complete checkpoints, whichever attempt wrote them, but the `keep_last` written last
    and the best one.

    A step may be lower than one of an earlier attempt whose checkpoint could not be used.
    """
    found = candidates(attempt.job, attempt.number)
    found.sort(key=lambda c: (c.attempt, c.step), reverse=True)
    best = best_first(found)[:1] if keep_best else []
    kept = {candidate.folder for candidate in (*found[:keep_last], *best)}
    for old in found:
        if old.folder not in kept:
            attempt.remove(old.folder)


def sweep(attempt: Attempt) -> None:
    """Remove what earlier attempts left unfinished; they have been fenced by this one's claim."""
    for _, writer in _writers(attempt.job, attempt.number - 1):
        for folder in writer.glob("*step-*"):
            try:
                if not (folder / MARKER).exists():
                    attempt.remove(folder)
            except OSError as error:
                # It does not count, and only takes room.
                log.warning("what an earlier attempt left is still there: %s", error)


def best_first(found: list[Candidate]) -> list[Candidate]:
    """Those that were the best when they were saved: of the newest attempt, lowest loss first.

    Such a one is better than all that its attempt went on from. Where an older attempt's has a
    lower loss, it could not be used.
    """
    judged = [candidate for candidate in found if candidate.marker.get("best")]
    return sorted(judged, key=lambda c: (-c.attempt, c.marker["eval_loss"], c.step))


def resume(
    job: Path,
    attempt: int,
    engine: TrainingStrategy,
    fingerprint: Fingerprint,
    parts: Parts = NO_PARTS,
) -> Position:
    """Restore the newest checkpoint whose files are as they were written.

    Returns where the run stands; step 0 where there is no checkpoint.
    """
    if dist.get_rank() == 0:
        sweep(Attempt(job, attempt))
    return _restore(_usable(job, attempt, fingerprint), engine, parts) or Position()


def restore_best(
    job: Path, attempt: int, engine: TrainingStrategy, fingerprint: Fingerprint
) -> Position | None:
    """Restore the checkpoint with the lowest held-out loss; None where none was judged."""
    return _restore(best_first(_usable(job, attempt, fingerprint)), engine, NO_PARTS)


def _usable(job: Path, attempt: int, fingerprint: Fingerprint) -> list[Candidate]:
    if dist.get_rank() != 0:
        return []
    found = candidates(job, attempt)
    foreign = [c for c in found if c.readable and c.marker.get("fingerprint") != fingerprint]
    for other in foreign:
        log.warning("not used, another plan or other data: %s", other.folder)
        found.remove(other)
    return found


def _restore(found: list[Candidate], engine: TrainingStrategy, parts: Parts) -> Position | None:
    """Restore the first of rank 0's candidates that is whole."""
    rank, world, unread = dist.get_rank(), dist.get_world_size(), None
    for candidate in collectives.from_rank_zero(found):
        share = _readable(candidate.folder, rank, world) if candidate.readable else None
        seen = collectives.gathered(share)
        if None in seen:
            log.warning("not used, it cannot be read: %s", candidate.folder)
            unread = candidate.folder
            continue
        files = {name: facts for share in seen for name, facts in share.items()}
        if files != candidate.marker["files"]:
            log.warning("not used, files differ from its marker: %s", candidate.folder)
            continue
        state = engine.state()
        sharded_format.read(candidate.folder, state)
        engine.restored(state)
        sharded_format.read_parts(candidate.folder, parts)
        marker = candidate.marker
        return Position(candidate.step, marker["loss"], marker.get("eval_loss"))
    if unread:
        # The volume may be well again for the next attempt, and to begin anew loses everything.
        raise RetryableError(
            "VolumeUnavailable",
            "No checkpoint is left that can be read.",
            "Look at the volume of the workspace. To begin anew, delete the job's checkpoints.",
            file=str(unread),
        )
    return None


def _readable(folder: Path, share: int, shares: int) -> FileList | None:
    """As `describe`; None where the volume gives errors for a file."""
    try:
        return describe(folder, share, shares)
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        return None
