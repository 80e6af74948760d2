"""The train stage: first process of a training pod, parent of its ranks.

It imports no ML library, so that telemetry answers at once and survives any crash of those: it
starts the ranks, aggregates their reports (one small file each), passes a stop request on to them,
and turns their exits into one result. The training itself is in `training.worker`.
"""

from finetune_trainer.runtime.sigterm import Stop, block_sigterm

if __name__ == "__main__":
    block_sigterm()

import json
import os
import signal
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from finetune_api.facts import TrainFacts
from finetune_api.progress import Progress, RankProgress
from finetune_api.protocol import ExitCode
from finetune_api.run_config import RunConfig
from finetune_api.stage_result import StageResult

from finetune_trainer.distributed.launcher import Ranks, prefetch_weights
from finetune_trainer.distributed.startup_timer import START_TIME_ENV, process_start_time
from finetune_trainer.distributed.watchdog import (
    Watchdog,
    merge_stalled_ranks,
    to_rank_progress,
)
from finetune_trainer.runtime.errors import RetryableError, StageError, UserError
from finetune_trainer.runtime.stage import run_stage
from finetune_trainer.runtime.telemetry import Report, make_rank_folder, read_rank_files
from finetune_trainer.training import tracking

POLL_SECONDS = 0.25
REPORTED_FIELDS = set(Progress.model_fields) - {"stage", "attempt", "ranks", "stalled"}
"""Fields of the pod's progress that its first rank reports."""


def train(run: RunConfig, report: Report, stop: Stop) -> StageResult:
    """Start this pod's ranks, follow them until they end, and collect their results."""
    plan = run.require_plan()
    node_rank = int(os.environ.get("JOB_COMPLETION_INDEX", "0"))
    report.update("starting the ranks", total_steps=plan.total_steps)
    threading.Thread(target=prefetch_weights, args=(run,), daemon=True).start()
    with make_rank_folder() as name:
        folder = Path(name)
        # Rank 0, which writes the history that trackers read, is a child of the first pod.
        is_first = node_rank == 0
        trackers = tracking.run_trackers(lambda: stop.requested) if is_first else nullcontext()
        is_preempted = False
        if not stop.requested:
            with trackers:
                ranks = Ranks(plan, run.master_host or "127.0.0.1", node_rank, folder)
                is_preempted = follow_ranks(ranks, folder, report, stop)
        is_preempted = is_preempted or stop.requested
        return collect_result(run, folder, node_rank, is_preempted, report.snapshot().stalled)


def follow_ranks(ranks: Ranks, folder: Path, report: Report, stop: Stop) -> bool:
    """Report the state of the ranks until they have ended, and kill those that no longer run.

    Returns whether a rank received SIGTERM from another process before it had anything to save.
    """
    signalled: set[int] = set()
    lost: list[RankProgress] = []
    watchdog = Watchdog()
    report.set_liveness_check(watchdog.liveness_error)
    while ranks.poll() is None:
        states = read_rank_files(folder)
        watchdog.update(states)
        if stop.requested:
            pass_stop_on(states, signalled)
        lost = lost or watchdog.ranks_to_kill(stop.requested)
        if lost:
            numbers = {rank.rank for rank in lost}
            ranks.terminate({state["pid"] for state in states if state["rank"] in numbers})
        if states:
            silent = lost or merge_stalled_ranks(watchdog.silent_ranks(), states)
            update_report(report, states, silent)
        time.sleep(POLL_SECONDS)
    report.set_liveness_check(None)
    update_report(report, read_rank_files(folder), report.snapshot().stalled)
    return ranks.is_preempted


def pass_stop_on(states: list[dict[str, Any]], signalled: set[int]) -> None:
    """Send SIGTERM once to every rank that has reported; a later call reaches the others."""
    for state in states:
        if state["pid"] not in signalled:
            signalled.add(state["pid"])
            try:
                os.kill(state["pid"], signal.SIGTERM)
            except ProcessLookupError:
                continue


def update_report(
    report: Report, states: list[dict[str, Any]], stalled: list[RankProgress]
) -> None:
    """Set the pod's progress: the fields of its first rank, and the last sign of life of each."""
    if not states:
        return
    fields = {name: value for name, value in states[0].items() if name in REPORTED_FIELDS}
    ranks = [to_rank_progress(state) for state in states]
    report.update(**{**fields, "ranks": ranks, "stalled": stalled})


def collect_result(
    run: RunConfig,
    folder: Path,
    node_rank: int,
    is_preempted: bool,
    stalled: list[RankProgress] | None = None,
) -> StageResult:
    """The result of this pod, from the result and error files of its ranks.

    `stalled` are ranks without a sign of life until they were killed, or until the others gave up.
    Raises StageError where the ranks failed.
    """
    plan = run.require_plan()
    errors = [json.loads(path.read_bytes()) for path in folder.glob("error-*.json")]
    results = [json.loads(path.read_bytes()) for path in sorted(folder.glob("result-*.json"))]
    only_lost_peers = all(error["failure"]["reason"] == "PeerLost" for error in errors)
    if errors and not (only_lost_peers and (is_preempted or stalled)):
        raise first_error(errors)
    if len(results) == plan.gpus_per_node:
        facts = TrainFacts.model_validate(results[0]["train"]) if node_rank == 0 else None
        is_finished = all(result["finished"] for result in results)
        return StageResult(
            stage="train",
            attempt=run.attempt,
            outcome="Succeeded" if is_finished else "Preempted",
            train=facts,
        )
    if is_preempted:
        return StageResult(stage="train", attempt=run.attempt, outcome="Preempted")
    if not read_rank_files(folder):
        raise RetryableError(
            "RendezvousFailed",
            "No training process reported that it has started.",
            "Read the log of this pod, and check whether all pods of this attempt started.",
        )
    if stalled:
        names = ", ".join(f"rank {rank.rank} on host {rank.host}" for rank in stalled[:4])
        raise RetryableError(
            "RankStalled",
            f"No sign of life from {names}, after step {stalled[0].step}.",
            "Check that pod and its node: a device that hangs, a volume that does not answer, or "
            "a process that was stopped.",
        )
    raise RetryableError(
        "RankFailed",
        f"{plan.gpus_per_node - len(results)} of {plan.gpus_per_node} training processes ended "
        "without a result or an error; the kernel probably killed them for using too much memory.",
        "Check the pod's last log lines and its memory limit.",
    )


def first_error(errors: list[dict[str, Any]]) -> StageError:
    """The earliest error that is not the mere loss of another rank."""
    causes = [error for error in errors if error["failure"]["reason"] != "PeerLost"] or errors
    first = min(causes, key=lambda error: float(error["at"]))
    failure = first["failure"]
    kind = UserError if first["code"] == ExitCode.USER_ERROR else RetryableError
    return kind(
        failure["reason"], failure["message"], failure.get("remedy"), file=failure.get("file")
    )


def main() -> int:
    os.environ[START_TIME_ENV] = str(process_start_time())
    stop = Stop()
    return run_stage("train", lambda run, report: train(run, report, stop), stop)


if __name__ == "__main__":
    raise SystemExit(main())
