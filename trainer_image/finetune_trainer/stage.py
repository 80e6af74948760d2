"""The shell that every stage runs in: run file in, telemetry meanwhile, one result out.

A stage is a function of (RunConfig, Report) that returns a StageResult or raises. The shell
answers HTTP before the stage imports anything heavy, turns every way of ending into one
StageResult of at most 4096 bytes and one exit code, and keeps tracebacks in the log: whoever
reads `kubectl describe` sees one line that says what is wrong, where, and what to do.
"""

import contextlib
import errno
import logging
import os
import re
import shutil
import sys
import threading
import traceback
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from finetune_api.run import (
    RUN_CONFIG_PATH,
    TELEMETRY_PORT,
    TERMINATION_MAX_BYTES,
    TERMINATION_PATH,
    ExitCode,
    Failure,
    RunConfig,
    StageName,
    StageResult,
)
from pydantic import ValidationError

from finetune_trainer.stopping import Preempted, Stop
from finetune_trainer.telemetry import Report, serve

__all__ = ["Report", "RetryableError", "StageError", "UserError", "run_stage"]

log = logging.getLogger("finetune")

Stage = Callable[[RunConfig, Report], StageResult]
EXIT_CODES = {
    "Succeeded": ExitCode.OK,
    "Failed": ExitCode.USER_ERROR,
    "Preempted": ExitCode.PREEMPTED,
}
UNWIND_SECONDS = 5.0
"""Between SIGTERM and the end of a stage, for what it gives back."""
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


def termination_message(result: StageResult, limit: int = TERMINATION_MAX_BYTES) -> bytes:
    """The result as JSON of at most `limit` bytes; what is least missed is shortened first."""

    def encode(shortened: StageResult) -> bytes:
        return shortened.model_dump_json(by_alias=True, exclude_none=True).encode()

    shorter: list[Callable[[StageResult], dict[str, Any]]] = [
        lambda r: {"failure": _with_short_texts(r.failure, 1200)},
        lambda r: {"train": r.train and r.train.model_copy(update={"hosts": r.train.hosts[:4]})},
        lambda r: {"probe": None},
        lambda r: {"failure": _with_short_texts(r.failure, 200)},
        lambda r: {"evaluation": None},
        lambda r: {"train": None},
    ]
    for change in shorter:
        if len(encode(result)) <= limit:
            break
        result = result.model_copy(update=change(result))
    return encode(result)


def _with_short_texts(failure: Failure | None, limit: int) -> Failure | None:
    texts = ("message", "remedy", "file")
    return failure and failure.model_copy(
        update={name: _shorten(getattr(failure, name), limit) for name in texts}
    )


def _read_run_config(stage: StageName) -> RunConfig:
    path = Path(os.environ.get("FINETUNE_RUN_CONFIG", RUN_CONFIG_PATH))
    try:
        run = RunConfig.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        detail = str(error).replace("\n", " ")[:500]
        raise UserError(
            "BadRunConfig", f"The run file is unusable: {detail}", file=str(path)
        ) from (error)
    if run.stage != stage:
        raise UserError(
            "BadRunConfig", f"The run file is for stage {run.stage}, not {stage}.", file=str(path)
        )
    return run


def _tell(result: StageResult, code: ExitCode) -> None:
    """Leave the result where the operator looks for it."""
    if result.failure:
        told = {"stage": result.stage, "attempt": result.attempt}
        failure = result.failure.model_copy(update=told)
        result = result.model_copy(update={"failure": failure})
    path = Path(os.environ.get("FINETUNE_TERMINATION_PATH", TERMINATION_PATH))
    message = termination_message(result)
    try:
        path.write_bytes(message)
    except OSError as error:
        log.error("cannot write the result to %s: %s", path, error)
    if result.failure:
        log.error("%s: %s", result.failure.reason, result.failure.message)
    log.info("stage %s ended: %s (exit code %d)", result.stage, result.outcome, code)


def run_stage(stage: StageName, work: Stage, stop: Stop | None = None) -> int:
    """Run one stage in this process and return its exit code.

    Reads the run file (FINETUNE_RUN_CONFIG overrides the path), serves telemetry on port 9400
    (FINETUNE_TELEMETRY_PORT), and writes the StageResult (FINETUNE_TERMINATION_PATH). A result
    that says Failed is a verdict on the input, so it ends with USER_ERROR. SIGTERM ends the
    process as Preempted within moments; a stage that has to put something in order first brings
    the `stop` that it looks at.
    """
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    # Threads that spin while they wait for each other take the cores from whoever they wait for:
    # on a busy CPU node a stage is several times faster without. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    attempt = 1
    # Taken for good by whoever tells how it ended: the end of the work, or a stop.
    ended = threading.Lock()

    def leave() -> None:
        # Whoever comes second waits here for the end of the process.
        ended.acquire()
        _tell(StageResult(stage=stage, attempt=attempt, outcome="Preempted"), ExitCode.PREEMPTED)
        os._exit(ExitCode.PREEMPTED)

    def finish(result: StageResult, code: ExitCode) -> int:
        asked.at_boundary()
        ended.acquire()
        _tell(result, code)
        return int(code)

    def outcome() -> tuple[StageResult, ExitCode]:
        nonlocal attempt
        try:
            run = _read_run_config(stage)
            attempt = run.attempt
            report = Report(stage, attempt)
            port = int(os.environ.get("FINETUNE_TELEMETRY_PORT", TELEMETRY_PORT))
            server = serve(report, port=port)
            told = (stage, attempt, server.server_port)
            log.info("stage %s, attempt %d, telemetry on port %d", *told)
            result = work(run, report)
            return result, EXIT_CODES[result.outcome]
        except Exception as error:
            failure, code = failure_of(error)
            if not isinstance(error, StageError):
                traceback.print_exc()
            failed = StageResult(stage=stage, attempt=attempt, outcome="Failed", failure=failure)
            return failed, code

    try:
        asked = stop or Stop(leave, UNWIND_SECONDS)
        return finish(*outcome())
    except Preempted:
        # Also where it came while a failure was being told.
        leave()
        raise
