"""One attempt at a time: how an attempt that was replaced is kept from changing anything.

Pods on a dead or partitioned node may run on for a while, or be frozen between a check and what
they checked for, so a check alone keeps nobody out. An attempt claims its stage by a file that must
not be there yet, and has a folder of its own, the scratch folder. Whatever others see is changed by
one rename out of that folder or into it: to publish is to move a finished thing to its place, to
remove is to move it away. A later attempt claims first and then takes the scratch folders of all
before it: from then on each such rename of theirs fails, wherever they stood. Nothing is ever
locked, so a holder that dies leaves no lock behind.
"""

import contextlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune_api.run import StageName

from finetune_trainer.runtime.errors import RetryableError
from finetune_trainer.runtime.fsync import seal, sync


@dataclass(frozen=True)
class Attempt:
    """One attempt of one stage of a job; as a context it claims, and at its end lets go."""

    job: Path
    """The job's folder, in which all attempts meet."""
    number: int
    stage: StageName = "train"
    home: Path | None = None
    """Where the scratch folder lies, if not in the job's folder: no rename leaves its mount."""

    @property
    def scratch(self) -> Path:
        """Where unfinished work lies."""
        return (self.home or self.job) / f".{self.stage}-{self.number}"

    def claim(self) -> None:
        """Take the stage for this attempt; called by one process, before anything is written.

        Raises RetryableError when a process of this attempt was here before: it may still run, and
        two processes of one attempt could not be told apart.
        """
        path = self._claim
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Exclusive creation is one step on the server, also over NFS from version 3 on.
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            raise RetryableError(
                "AttemptAlreadyClaimed",
                f"Attempt {self.number} was started before and may still be running.",
                "Nothing: the next attempt goes on from what is complete.",
                file=str(path),
            ) from None
        try:
            # The name is the claim; what is in it is for people, and may be missing after a crash.
            with contextlib.suppress(OSError):
                host = {"host": socket.gethostname(), "pid": os.getpid()}
                os.write(descriptor, json.dumps(host).encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync(path.parent)
        self.scratch.mkdir(parents=True, exist_ok=True)
        self._take_over()

    def superseded(self) -> int | None:
        """The newest attempt that has claimed the stage after this one."""
        names = (path.name for path in (self.job / "claims").glob("*"))
        numbers = [name.removeprefix(self._prefix) for name in names if self._is_ours(name)]
        newest = max((int(number) for number in numbers), default=0)
        return newest if newest > self.number else None

    def require_newest(self) -> None:
        """Raise RetryableError Fenced when a later attempt has claimed the stage."""
        if later := self.superseded():
            raise fenced(f"Attempt {later} has taken over from attempt {self.number}.")

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Tell what fails because the scratch folder was taken away as what it is."""
        try:
            yield
        except FileNotFoundError:
            if self.scratch.is_dir():
                raise
            self.require_newest()
            if not self._claim.exists():
                raise RetryableError(
                    "VolumeUnavailable",
                    "The job's folder is not there any more.",
                    "Look at the volume of the workspace.",
                    file=str(self.job),
                ) from None
            raise fenced(f"A later attempt has taken over from attempt {self.number}.") from None

    def publish(self, finished: Path, target: Path) -> None:
        """Move something durable from the scratch folder to its place, which a file may have."""
        self.require_newest()
        if target.is_dir():
            self.remove(target)
        with self.guarded():
            finished.rename(target)
        sync(target.parent)

    def publish_file(self, target: Path, content: bytes) -> None:
        """Write a file that is whole wherever it is seen."""
        finished = self.scratch / target.name
        with self.guarded():
            finished.write_bytes(content)
            seal(finished)
        self.publish(finished, target)

    def remove(self, path: Path) -> None:
        """Delete a file or folder that others see: gone at once, and its bytes a little later."""
        self.require_newest()
        doomed = self.scratch / f"removed-{uuid.uuid4().hex}"
        with self.guarded():
            path.rename(doomed)
        discard(doomed)

    def release(self) -> None:
        """Remove the scratch folder; nothing can be published any more."""
        discard(self.scratch)

    def __enter__(self) -> "Attempt":
        self.claim()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        # Whatever went wrong in an attempt that was replaced followed from that.
        later = self.superseded() if isinstance(error, Exception) else None
        self.release()
        if later:
            raise fenced(f"Attempt {later} has taken over from attempt {self.number}.") from error

    @property
    def _claim(self) -> Path:
        return self.job / "claims" / f"{self._prefix}{self.number}"

    @property
    def _prefix(self) -> str:
        return "" if self.stage == "train" else f"{self.stage}-"

    def _is_ours(self, name: str) -> bool:
        return name.startswith(self._prefix) and is_number(name.removeprefix(self._prefix))

    def _take_over(self) -> None:
        for other in self.scratch.parent.glob(f".{self.stage}-*"):
            number = other.name.removeprefix(f".{self.stage}-")
            if is_number(number) and int(number) < self.number:
                taken = self.scratch / f"taken-{number}"
                # It may have ended, and removed its folder itself, just now.
                with contextlib.suppress(FileNotFoundError):
                    other.rename(taken)
                    discard(taken)


def is_number(name: str) -> bool:
    """Whether this is an attempt's number, and nothing that somebody else put there."""
    return name.isascii() and name.isdecimal()


def fenced(message: str) -> RetryableError:
    """The error of an attempt that was replaced."""
    remedy = "Nothing: the later attempt goes on from what is complete."
    return RetryableError("Fenced", message, remedy)


def discard(path: Path) -> None:
    """Remove a file or a folder; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
