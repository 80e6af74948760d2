"""The shell that every stage runs in: run file in, telemetry meanwhile, one result out.

A stage is a function of (RunConfig, Report) that returns a StageResult or raises. The shell
answers HTTP before the stage imports anything heavy, turns every way of ending into one
StageResult of at most 4096 bytes and one exit code, and keeps tracebacks in the log: whoever
reads `kubectl describe` sees one line that says what is wrong, where, and what to do.
"""

import logging
import os
import sys
import threading
import traceback
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

from finetune_trainer.runtime.errors import (
    RetryableError,
    StageError,
    UserError,
    _shorten,
    failure_of,
)
from finetune_trainer.runtime.sigterm import Preempted, Stop
from finetune_trainer.runtime.telemetry import Report, serve

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
        asked.defer_to_boundary()
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
