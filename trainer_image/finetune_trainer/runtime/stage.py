"""Runs one stage: the run file in, telemetry meanwhile, one result out.

A stage is a function of (RunConfig, Report) that returns a StageResult or raises. `run_stage`
answers HTTP before the stage imports anything heavy, turns every way of ending into one
StageResult of at most 4096 bytes and one exit code, and keeps tracebacks in the log: a user of
`kubectl describe` sees one line that says what is wrong, where, and what to do.
"""

import logging
import os
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api.evaluation import BASE
from finetune_api.evaluation_summary import EvaluationSummary
from finetune_api.facts import DataFacts
from finetune_api.failure import Failure
from finetune_api.protocol import (
    RUN_CONFIG_PATH,
    TELEMETRY_PORT,
    TERMINATION_MAX_BYTES,
    TERMINATION_PATH,
    ExitCode,
    StageName,
)
from finetune_api.run_config import RunConfig
from finetune_api.stage_result import StageResult
from pydantic import ValidationError

from finetune_trainer.runtime.errors import StageError, UserError, classify_error, shorten
from finetune_trainer.runtime.logs import configure_logging
from finetune_trainer.runtime.sigterm import Preempted, Stop
from finetune_trainer.runtime.telemetry import Report, serve_telemetry

log = logging.getLogger("finetune")

Stage = Callable[[RunConfig, Report], StageResult]
EXIT_CODES = {
    "Succeeded": ExitCode.OK,
    "Failed": ExitCode.USER_ERROR,
    "Preempted": ExitCode.PREEMPTED,
}
UNWIND_SECONDS = 5.0
"""From SIGTERM to the exit of a stage, in which it can release what it holds."""

SAME_RELEASE = "Install operator and trainer image of the same release."


def run_stage(stage: StageName, work: Stage, stop: Stop | None = None) -> int:
    """Run one stage in this process and return its exit code.

    Reads the run file (FINETUNE_RUN_CONFIG overrides the path), serves telemetry on port 9400
    (FINETUNE_TELEMETRY_PORT), and writes the StageResult (FINETUNE_TERMINATION_PATH). A result
    that says Failed is an error in the user's input, so the exit code is USER_ERROR. SIGTERM ends
    the process as Preempted within seconds; a stage that has to save its work first passes the
    `stop` that it polls itself.
    """
    configure_logging()
    # Threads that spin while they wait for each other take the cores from the threads that they
    # wait for: on a busy CPU node a stage is several times faster without. torch reads it when it
    # is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    attempt = 1
    # The thread that writes the result keeps it: the end of the work, or a stop.
    result_lock = threading.Lock()

    def exit_preempted() -> None:
        # The second thread to get here waits for the end of the process.
        result_lock.acquire()
        result = StageResult(stage=stage, attempt=attempt, outcome="Preempted")
        _write_result(result, ExitCode.PREEMPTED)
        os._exit(ExitCode.PREEMPTED)

    def run_work() -> tuple[StageResult, ExitCode]:
        nonlocal attempt
        try:
            run = _read_run_config(stage)
            attempt = run.attempt
            report = Report(stage, attempt)
            port = int(os.environ.get("FINETUNE_TELEMETRY_PORT", TELEMETRY_PORT))
            server = serve_telemetry(report, port=port)
            fields = {"stage": stage, "attempt": attempt, "telemetry_port": server.server_port}
            log.info("Stage started", extra=fields)
            result = work(run, report)
            return result, EXIT_CODES[result.outcome]
        except Exception as error:
            failure, code = classify_error(error)
            if not isinstance(error, StageError):
                traceback.print_exc()
            failed = StageResult(stage=stage, attempt=attempt, outcome="Failed", failure=failure)
            return failed, code

    try:
        stop = stop or Stop(exit_preempted, UNWIND_SECONDS)
        result, code = run_work()
        stop.defer_to_boundary()
        result_lock.acquire()
        _write_result(result, code)
        return int(code)
    except Preempted:
        # It may also be raised while a failure is reported.
        exit_preempted()
        raise


def _read_run_config(stage: StageName) -> RunConfig:
    path = Path(os.environ.get("FINETUNE_RUN_CONFIG", RUN_CONFIG_PATH))
    try:
        run = RunConfig.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        detail = str(error).replace("\n", " ")[:500]
        raise UserError(
            "BadRunConfig", f"The run file is unusable: {detail}", SAME_RELEASE, file=str(path)
        ) from error
    if run.stage != stage:
        raise UserError(
            "BadRunConfig",
            f"The run file is for stage {run.stage}, not {stage}.",
            SAME_RELEASE,
            file=str(path),
        )
    return run


def _write_result(result: StageResult, code: ExitCode) -> None:
    """Write the result as the termination message, which the operator reads from the pod."""
    if result.failure:
        place = {"stage": result.stage, "attempt": result.attempt}
        failure = result.failure.model_copy(update=place)
        result = result.model_copy(update={"failure": failure})
    path = Path(os.environ.get("FINETUNE_TERMINATION_PATH", TERMINATION_PATH))
    try:
        path.write_bytes(termination_message(result))
    except OSError as error:
        log.error("Cannot write the result", extra={"file": str(path), "error": str(error)})
    if result.failure:
        fields = {"reason": result.failure.reason, "failure": result.failure.message}
        log.error("Stage failed", extra=fields)
    log.info(
        "Stage ended",
        extra={"stage": result.stage, "outcome": result.outcome, "exit_code": int(code)},
    )


def termination_message(result: StageResult, limit: int = TERMINATION_MAX_BYTES) -> bytes:
    """The result as JSON of at most `limit` bytes; the least important parts are cut first."""

    def encode(shortened: StageResult) -> bytes:
        return shortened.model_dump_json(by_alias=True, exclude_none=True).encode()

    cuts: list[Callable[[StageResult], dict[str, Any]]] = [
        lambda r: {"failure": _shorten_texts(r.failure, 1200)},
        lambda r: {"train": r.train and r.train.model_copy(update={"hosts": r.train.hosts[:4]})},
        lambda r: {"data": _shorten_sources(r.data)},
        lambda r: {"data": r.data and r.data.model_copy(update={"sources": None})},
        # The operator writes the table of a gate again, from the figures.
        lambda r: {"failure": _shorten_texts(r.failure, 100 if r.evaluation else 1200)},
        lambda r: {"evaluation": _shorten_comparisons(r.evaluation, is_base_kept=True)},
        lambda r: {"probe": None},
        lambda r: {"failure": _shorten_texts(r.failure, 200)},
        lambda r: {"evaluation": _shorten_comparisons(r.evaluation, is_base_kept=False)},
        lambda r: {"evaluation": None},
        lambda r: {"train": None},
    ]
    for cut in cuts:
        if len(encode(result)) <= limit:
            break
        result = result.model_copy(update=cut(result))
    return encode(result)


def _shorten_sources(data: DataFacts | None) -> DataFacts | None:
    """Without addresses, versions and digests, which data/manifest.json of the job has too."""
    if data is None or data.sources is None:
        return data
    without = {"uri": None, "version": None, "digest": None}
    sources = [source.model_copy(update=without) for source in data.sources]
    return data.model_copy(update={"sources": sources})


def _shorten_comparisons(
    summary: EvaluationSummary | None, is_base_kept: bool
) -> EvaluationSummary | None:
    """Without other baselines, or without any comparison; with a warning that they are missing."""
    if summary is None:
        return None
    kept = [each for each in summary.comparisons if is_base_kept and each.baseline == BASE]
    if len(kept) == len(summary.comparisons):
        return summary
    missing = "of other baselines" if is_base_kept else "of metrics"
    warning = f"comparisons {missing} are only in the evaluation report, for lack of space"
    warnings = [each for each in summary.warnings if not each.startswith("comparisons of ")]
    return summary.model_copy(update={"comparisons": kept, "warnings": [*warnings, warning]})


def _shorten_texts(failure: Failure | None, limit: int) -> Failure | None:
    texts = ("message", "remedy", "file")
    return failure and failure.model_copy(
        update={name: shorten(getattr(failure, name), limit) for name in texts}
    )
