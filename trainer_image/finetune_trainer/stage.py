"""The shell that every stage runs in: run file in, telemetry meanwhile, one result out.

A stage is a function of (RunConfig, Report) that returns a StageResult or raises. The shell
answers HTTP before the stage imports anything heavy, turns every way of ending into one
StageResult of at most 4096 bytes and one exit code, and keeps tracebacks in the log: whoever
reads `kubectl describe` sees one line that says what is wrong, where, and what to do.
"""

import errno
import logging
import os
import signal
import sys
import traceback
import unicodedata
from collections.abc import Callable
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

from finetune_trainer.telemetry import Report, serve

__all__ = ["Preempted", "Report", "RetryableError", "StageError", "UserError", "run_stage"]

log = logging.getLogger("finetune")

Stage = Callable[[RunConfig, Report], StageResult]
EXIT_CODES = {
    "Succeeded": ExitCode.OK,
    "Failed": ExitCode.USER_ERROR,
    "Preempted": ExitCode.PREEMPTED,
}
TEXT_MAX_BYTES = 2000
"""Of a failure's message: enough for a person, and a status has room for it."""
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


class Preempted(BaseException):
    """The stage was asked to stop (SIGTERM) and has put its work in order.

    Not an Exception: it may be raised at any line, and a library's `except Exception`, or ours
    that tells a broken tokenizer, must not take it for a fault of the input.
    """


def failure_of(error: BaseException) -> tuple[Failure, ExitCode]:
    """What an exception means for the user, and whether another attempt makes sense."""
    if isinstance(error, StageError):
        return error.failure, error.exit_code
    if _is_out_of_memory(error):
        first_line = _plain(str(error).split("\n", 1)[0], 1000) or "no memory left"
        failure = Failure(reason="OutOfMemory", message=first_line, remedy=OUT_OF_MEMORY_REMEDY)
        return failure, ExitCode.USER_ERROR
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        failure = Failure(
            reason="NoSpaceLeft",
            message=f"The volume is full: {error.strerror}.",
            file=_plain(str(error.filename)) if error.filename else None,
            remedy="Enlarge the workspace claim or delete old jobs.",
        )
        return failure, ExitCode.RETRYABLE
    text = _plain(str(error).strip().split("\n", 1)[0], 1000)
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return Failure(reason="InternalError", message=message), ExitCode.RETRYABLE


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


def _raise_preempted(signum: int, frame: object) -> None:
    raise Preempted


def _finish(result: StageResult, code: ExitCode) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
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
    return int(code)


def run_stage(stage: StageName, work: Stage) -> int:
    """Run one stage in this process and return its exit code.

    Reads the run file (FINETUNE_RUN_CONFIG overrides the path), serves telemetry on port 9400
    (FINETUNE_TELEMETRY_PORT), turns SIGTERM into Preempted, and writes the StageResult
    (FINETUNE_TERMINATION_PATH). A result that says Failed is a verdict on the input, so it
    ends with USER_ERROR.
    """
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    # Threads that spin while they wait for each other take the cores from whoever they wait for:
    # on a busy CPU node a stage is several times faster without. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    attempt = 1
    try:
        signal.signal(signal.SIGTERM, _raise_preempted)
        run = _read_run_config(stage)
        attempt = run.attempt
        report = Report(stage, attempt)
        server = serve(report, port=int(os.environ.get("FINETUNE_TELEMETRY_PORT", TELEMETRY_PORT)))
        log.info("stage %s, attempt %d, telemetry on port %d", stage, attempt, server.server_port)
        result = work(run, report)
        return _finish(result, EXIT_CODES[result.outcome])
    except Preempted:
        return _finish(
            StageResult(stage=stage, attempt=attempt, outcome="Preempted"), ExitCode.PREEMPTED
        )
    except Exception as error:
        failure, code = failure_of(error)
        if not isinstance(error, StageError):
            traceback.print_exc()
        failed = StageResult(stage=stage, attempt=attempt, outcome="Failed", failure=failure)
        return _finish(failed, code)
