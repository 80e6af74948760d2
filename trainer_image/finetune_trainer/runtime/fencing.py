"""Fencing of attempts: an attempt that was replaced cannot change anything any more.

Pods on a dead or partitioned node may run on for a while, or freeze between a check and the change
that it allowed, so a check alone fences no one. An attempt claims its stage by a file that must
not exist yet, and owns a folder, the scratch folder. It changes what others see by one rename out
of that folder or into it: to publish is to move a finished file or folder to its place, to remove
is to move it away. A later attempt claims the stage first and then takes the scratch folders of
all earlier ones: from then on each of their renames fails, wherever they were interrupted. No lock
is held, so a process that dies leaves none behind.
"""

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune_api.protocol import StageName

from finetune_trainer.runtime.errors import RetryableError
from finetune_trainer.runtime.fsync import fsync_path, fsync_tree
from finetune_trainer.runtime.host_name import get_host_name


@dataclass(frozen=True)
class Attempt:
    """One attempt of one stage of a job; as a context manager it claims and releases it."""

    job: Path
    """The job's folder, which all attempts share."""
    number: int
    stage: StageName = "train"
    home: Path | None = None
    """Parent of the scratch folder, if not the job's folder: a rename cannot leave its mount."""

    @property
    def scratch(self) -> Path:
        """The folder for unfinished work."""
        return (self.home or self.job) / f".{self.stage}-{self.number}"

    def claim(self) -> None:
        """Claim the stage for this attempt; called by one process, before it writes anything.

        Raises RetryableError AttemptAlreadyClaimed when a process of this attempt was here before:
        it may still run, and the files do not distinguish two processes of one attempt.
        """
        path = self._claim_file
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # The server does an exclusive create in one step, also over NFS from version 3 on.
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            raise RetryableError(
                "AttemptAlreadyClaimed",
                f"Attempt {self.number} was started before and may still be running.",
                "Nothing: the next attempt continues from the complete files.",
                file=str(path),
            ) from None
        try:
            # The file's name counts. Its content is for people, and may be missing after a crash.
            with contextlib.suppress(OSError):
                host = {"host": get_host_name(), "pid": os.getpid()}
                os.write(descriptor, json.dumps(host).encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        fsync_path(path.parent)
        self.scratch.mkdir(parents=True, exist_ok=True)
        self._take_over()

    def newer_attempt(self) -> int | None:
        """Number of the newest attempt that has claimed the stage after this one."""
        names = (path.name for path in (self.job / "claims").glob("*"))
        numbers = [name.removeprefix(self._prefix) for name in names if self._is_of_stage(name)]
        newest = max((int(number) for number in numbers), default=0)
        return newest if newest > self.number else None

    def require_newest(self) -> None:
        """Raise RetryableError Fenced when a later attempt has claimed the stage."""
        if later := self.newer_attempt():
            raise fenced_error(f"Attempt {later} has taken over from attempt {self.number}.")

    @contextlib.contextmanager
    def fencing_errors(self) -> Iterator[None]:
        """Raise Fenced, or VolumeUnavailable, for a file that is missing with the scratch folder.

        Any other OSError passes.
        """
        try:
            yield
        except OSError as error:
            # Over NFS a handle of the folder that a later attempt removed is stale.
            if error.errno not in (errno.ENOENT, errno.ESTALE) or self.scratch.is_dir():
                raise
            self.require_newest()
            if not self._claim_file.exists():
                raise RetryableError(
                    "VolumeUnavailable",
                    "The job's folder no longer exists.",
                    "Check the volume of the workspace.",
                    file=str(self.job),
                ) from None
            message = f"A later attempt has taken over from attempt {self.number}."
            raise fenced_error(message) from None

    def publish(self, finished: Path, target: Path) -> None:
        """Move a synced file or folder from the scratch folder to its place.

        It replaces a file or folder that is there.
        """
        self.require_newest()
        if target.is_dir():
            self.remove_published(target)
        with self.fencing_errors():
            finished.rename(target)
        fsync_path(target.parent)

    def publish_file(self, target: Path, content: bytes) -> None:
        """Write a file that other processes see complete or not at all."""
        finished = self.scratch / target.name
        with self.fencing_errors():
            finished.write_bytes(content)
            fsync_tree(finished)
        self.publish(finished, target)

    def remove_published(self, path: Path) -> None:
        """Delete a file or folder that others see: its name at once, its bytes a little later."""
        self.require_newest()
        doomed = self.scratch / f"removed-{uuid.uuid4().hex}"
        with self.fencing_errors():
            path.rename(doomed)
        remove_quietly(doomed)

    def release(self) -> None:
        """Remove the scratch folder; from then on this attempt cannot publish."""
        remove_quietly(self.scratch)

    def __enter__(self) -> "Attempt":
        self.claim()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        # An error in an attempt that was replaced is a consequence of the replacement.
        later = self.newer_attempt() if isinstance(error, Exception) else None
        self.release()
        if later:
            message = f"Attempt {later} has taken over from attempt {self.number}."
            raise fenced_error(message) from error

    @property
    def _claim_file(self) -> Path:
        return self.job / "claims" / f"{self._prefix}{self.number}"

    @property
    def _prefix(self) -> str:
        return "" if self.stage == "train" else f"{self.stage}-"

    def _is_of_stage(self, name: str) -> bool:
        return name.startswith(self._prefix) and is_attempt_number(name.removeprefix(self._prefix))

    def _take_over(self) -> None:
        for other in self.scratch.parent.glob(f".{self.stage}-*"):
            number = other.name.removeprefix(f".{self.stage}-")
            if is_attempt_number(number) and int(number) < self.number:
                taken = self.scratch / f"taken-{number}"
                # That attempt may have ended just now and removed its folder itself.
                with contextlib.suppress(FileNotFoundError):
                    other.rename(taken)
                    remove_quietly(taken)


def is_attempt_number(name: str) -> bool:
    """Whether this is the number of an attempt, and not a file that another program made."""
    return name.isascii() and name.isdecimal()


def fenced_error(message: str) -> RetryableError:
    """The error of an attempt that was replaced."""
    remedy = "Nothing: the later attempt continues from the complete files."
    return RetryableError("Fenced", message, remedy)


def remove_quietly(path: Path) -> None:
    """Remove a file or a folder; what cannot be removed stays, without an error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
