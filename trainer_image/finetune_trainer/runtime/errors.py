"""What a stage fails with: a reason, a message, a remedy, and whether a retry makes sense.

A stage raises UserError or RetryableError where it knows what is wrong; `classify_error` turns any
other exception into the same two facts: a Failure for the user and an exit code for the operator.
"""

import errno
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from finetune_api.failure import Failure
from finetune_api.protocol import ExitCode

from finetune_trainer.runtime.free_space import free_bytes_of_nearest

TEXT_MAX_BYTES = 2000
"""Longest message of a failure: enough for a person, and short enough for a status."""
NO_SPACE_LEFT = "NoSpaceLeft"
"""Reason of a write that failed because a volume is full. A download that is not begun, because
it would not fit into the workspace, has the reason WorkspaceFull (`sources.download_space`)."""
_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
_FULL_PATTERN = (
    rf"{os.strerror(errno.ENOSPC)}|{os.strerror(errno.EDQUOT)}|\d+ requested and \d+ written"
    "|No usable temporary directory"
)
_UNAVAILABLE_ERRNOS = (errno.EROFS, errno.EIO, errno.ESTALE)
_UNAVAILABLE_PATTERN = "|".join(
    # The quote belongs to a file name: a socket gives the last error too, but without a name.
    [*map(os.strerror, _UNAVAILABLE_ERRNOS), rf"{os.strerror(errno.ENOTCONN)}: '"]
)
_SHARED_MEMORY = "/dev/shm"
_MIN_WRITABLE_BYTES = 2**16
"""With fewer free bytes a file system takes no new file."""
_OUT_OF_MEMORY_REMEDY = (
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
        """`reason` is CamelCase for machines; `message` and `remedy` are for people."""
        super().__init__(message)
        self.failure = Failure(
            reason=reason,
            message=_to_plain_text(message),
            remedy=remedy and _to_plain_text(remedy),
            file=file and _to_plain_text(file),
            line=line,
        )


class UserError(StageError):
    """The input cannot work: another attempt would fail in the same way."""

    exit_code = ExitCode.USER_ERROR


class RetryableError(StageError):
    """Something outside the input failed: another attempt may succeed."""


def classify_error(error: BaseException) -> tuple[Failure, ExitCode]:
    """What an exception means for the user, and whether another attempt makes sense."""
    if isinstance(error, StageError):
        return error.failure, error.exit_code
    if _is_out_of_memory(error):
        message = _to_plain_text(str(error).split("\n", 1)[0], 1000) or "no memory left"
        failure = Failure(reason="OutOfMemory", message=message, remedy=_OUT_OF_MEMORY_REMEDY)
        return failure, ExitCode.USER_ERROR
    if is_disk_full(error):
        return disk_full_failure(error), ExitCode.RETRYABLE
    if _is_os_error(error, _UNAVAILABLE_ERRNOS, _UNAVAILABLE_PATTERN):
        failure = Failure(
            reason="VolumeUnavailable",
            message=_to_plain_text(f"A volume cannot be used: {str(error).strip()}", 1000),
            remedy="Check the volume of the workspace and its mount on this node.",
        )
        return failure, ExitCode.RETRYABLE
    text = _to_plain_text(str(error).strip().split("\n", 1)[0], 1000)
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    failure = Failure(
        reason="InternalError",
        message=message,
        remedy="Read the pod's log, and report the error.",
    )
    return failure, ExitCode.RETRYABLE


def is_disk_full(error: BaseException) -> bool:
    """Whether a volume is full, or the quota on it is used up."""
    return _is_os_error(error, _FULL_ERRNOS, _FULL_PATTERN)


def _is_os_error(error: BaseException | None, errnos: Sequence[int], pattern: str) -> bool:
    """Whether an error, or one of its causes, has such an errno or a text that matches `pattern`.

    Libraries in Rust give the text alone, and numpy only the number of bytes it could not write.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in errnos:
            return True
        if re.search(pattern, str(error)):
            return True
        error = error.__cause__
    return False


def disk_full_failure(error: BaseException) -> Failure:
    """The failure of a full volume; names the file and the free bytes where they are known."""
    file = os.fsdecode(error.filename) if isinstance(error, OSError) and error.filename else None
    where, remedy = (
        "volume",
        "Enlarge the workspace claim, or delete jobs and release artifacts that are no longer "
        "needed.",
    )
    if _SHARED_MEMORY in f"{file} {error}":
        where = "pod's shared memory"
        remedy = "Raise sharedMemory in the AcceleratorProfile."
    elif _is_temporary_folder_full(file):
        where = "node's disk, which is the pod's /tmp,"
        remedy = "Free disk space on the node; its images, logs and other pods take it too."
    words = f"The {where} is full"
    if file and (free := free_bytes_of_nearest(Path(file))) is not None:
        words += f", {free} bytes are free"
    return Failure(
        reason=NO_SPACE_LEFT,
        message=_to_plain_text(f"{words}: {str(error).strip() or type(error).__name__}", 1000),
        file=file and _to_plain_text(file),
        remedy=remedy,
    )


def _is_temporary_folder_full(file: str | None) -> bool:
    """Whether the pod's /tmp is the full volume; some libraries do not name the file."""
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    if file is not None:
        return Path(file).is_relative_to(folder)
    free = free_bytes_of_nearest(folder)
    return free is not None and free < _MIN_WRITABLE_BYTES


def _is_out_of_memory(error: BaseException) -> bool:
    # torch has a type of its own for it; importing torch here would cost seconds. On CPUs, and
    # inside cuBLAS and NCCL, it raises a plain RuntimeError.
    signs = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs))
    )


def _to_plain_text(text: str, limit: int = TEXT_MAX_BYTES) -> str:
    """Text that a status can hold: valid UTF-8, no control characters, at most `limit` bytes.

    Messages quote the user's data, where a column name may be anything.
    """
    valid = text.encode(errors="replace").decode()
    printable = "".join(" " if unicodedata.category(c) == "Cc" else c for c in valid)
    return shorten(printable, limit) or ""


def shorten(text: str | None, limit: int) -> str | None:
    """At most `limit` bytes of UTF-8, with an ellipsis where something was cut."""
    if text is None or len(text.encode()) <= limit:
        return text
    return text.encode()[: limit - 3].decode(errors="ignore") + "…"
