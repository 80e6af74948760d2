"""TODO."""

import contextlib
import errno
import os
import re
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from finetune_api.run import (
    ExitCode,
    Failure,
)

TEXT_MAX_BYTES = 2000
"""Of a failure's message: enough for a person, and a status has room for it."""


NO_SPACE_LEFT = "NoSpaceLeft"


FULL = (errno.ENOSPC, errno.EDQUOT)


_FULL_TEXT = (
    rf"{os.strerror(errno.ENOSPC)}|{os.strerror(errno.EDQUOT)}|\d+ requested and \d+ written"
    "|No usable temporary directory"
)


SHARED_MEMORY = "/dev/shm"


ROOM_OF_A_FILE = 2**16
"""Bytes; where fewer are free nothing can be written."""


UNAVAILABLE = (errno.EROFS, errno.EIO, errno.ESTALE)


_UNAVAILABLE_TEXT = "|".join(
    # The last one is also said of sockets, which have no name.
    [*map(os.strerror, UNAVAILABLE), rf"{os.strerror(errno.ENOTCONN)}: '"]
)


OUT_OF_MEMORY_REMEDY = (
    "Lower training.microBatchSize or training.maxSequenceLength, turn on "
    "training.gradientCheckpointing, or use compute.strategy ZeRO3 or FSDP on more devices."
)


class StageError(Exception):
    """A failure that says what is wrong, where, and what to do."""

    exit_code = ExitCode.RETRYABLE

    def __init__(
        self,
        reason: str,
        message: str,
        remedy: str | None = None,
        *,
        file: str | None = None,
        line: int | None = None,
    ) -> None:
        """`reason` is CamelCase for machines, `message` and `remedy` are for people."""
        super().__init__(message)
        self.failure = Failure(
            reason=reason,
            message=_plain(message),
            remedy=remedy and _plain(remedy),
            file=file and _plain(file),
            line=line,
        )


class UserError(StageError):
    """The input cannot work: trying again would end the same way."""

    exit_code = ExitCode.USER_ERROR


class RetryableError(StageError):
    """Something outside the input failed: another attempt may succeed."""


def failure_of(error: BaseException) -> tuple[Failure, ExitCode]:
    """What an exception means for the user, and whether another attempt makes sense."""
    if isinstance(error, StageError):
        return error.failure, error.exit_code
    if _is_out_of_memory(error):
        first_line = _plain(str(error).split("\n", 1)[0], 1000) or "no memory left"
        failure = Failure(reason="OutOfMemory", message=first_line, remedy=OUT_OF_MEMORY_REMEDY)
        return failure, ExitCode.USER_ERROR
    if is_full(error):
        return no_space_left(error), ExitCode.RETRYABLE
    if _is_of_system(error, UNAVAILABLE, _UNAVAILABLE_TEXT):
        failure = Failure(
            reason="VolumeUnavailable",
            message=_plain(f"A volume cannot be used: {str(error).strip()}", 1000),
            remedy="Look at the volume of the workspace and at its mount on this node.",
        )
        return failure, ExitCode.RETRYABLE
    text = _plain(str(error).strip().split("\n", 1)[0], 1000)
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return Failure(reason="InternalError", message=message), ExitCode.RETRYABLE


def is_full(error: BaseException) -> bool:
    """Whether a volume, or what a user may write to it, is full."""
    return _is_of_system(error, FULL, _FULL_TEXT)


def _is_of_system(error: BaseException | None, numbers: Sequence[int], text: str) -> bool:
    """Whether an error, or what caused it, has one of these numbers or a text like this.

    Libraries in Rust tell it in words, and numpy only says how much it could not write.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in numbers:
            return True
        if re.search(text, str(error)):
            return True
        error = error.__cause__
    return False


def no_space_left(error: BaseException) -> Failure:
    """The failure of a full volume, with the file and what is free where that is known."""
    file = os.fsdecode(error.filename) if isinstance(error, OSError) and error.filename else None
    where, remedy = (
        "volume",
        "Enlarge the workspace claim or delete jobs that are no longer needed.",
    )
    if SHARED_MEMORY in f"{file} {error}":
        where = "pod's shared memory"
        remedy = "Raise sharedMemory in the AcceleratorProfile."
    elif _is_temporary(file):
        where = "node's disk, which is the pod's /tmp,"
        remedy = "Free disk space on the node; its images, logs and other pods take it too."
    words = f"The {where} is full"
    if file and (free := free_bytes(Path(file))) is not None:
        words += f", {free} are free"
    return Failure(
        reason=NO_SPACE_LEFT,
        message=_plain(f"{words}: {str(error).strip() or type(error).__name__}", 1000),
        file=file and _plain(file),
        remedy=remedy,
    )


def _is_temporary(file: str | None) -> bool:
    """Whether it is the pod's /tmp that has no room; what fails to write tells no file."""
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    if file is not None:
        return Path(file).is_relative_to(folder)
    free = free_bytes(folder)
    return free is not None and free < ROOM_OF_A_FILE


def free_bytes(path: Path) -> int | None:
    """Bytes that may still be written where `path` is, or would be."""
    for folder in (path, *path.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(folder).free
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    # torch names its own type so; importing torch here would cost seconds. On CPUs, and inside
    # of cuBLAS and NCCL, it raises a plain RuntimeError.
    signs = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs))
    )


def _plain(text: str, limit: int = TEXT_MAX_BYTES) -> str:
    """Text that a status can hold: valid UTF-8 without control characters, not too long.

    Messages quote the user's data, where a column name may be anything.
    """
    valid = text.encode(errors="replace").decode()
    shown = "".join(" " if unicodedata.category(c) == "Cc" else c for c in valid)
    return _shorten(shown, limit) or ""


def _shorten(text: str | None, limit: int) -> str | None:
    """At most `limit` bytes of UTF-8, with an ellipsis where something was cut."""
    if text is None or len(text.encode()) <= limit:
        return text
    return text.encode()[: limit - 3].decode(errors="ignore") + "…"
