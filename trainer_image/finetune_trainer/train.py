"""The train stage: first process of a training pod, parent of its ranks.

It stays light, so that telemetry answers at once and outlives any crash of the libraries: it
starts the ranks, reads what they tell (one small file each), passes a stop on to them, and
turns how they ended into one result. The training itself is in `worker`.
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

from finetune_api.run import (
    ExitCode,
    Progress,
    RankProgress,
    RunConfig,
    StageResult,
    TrainFacts,
)

from finetune_trainer.distributed.launcher import Ranks, read_ahead
from finetune_trainer.distributed.startup_timer import BEGAN_ENV, process_began
from finetune_trainer.distributed.watchdog import Watchdog, heartbeat_of, stalled
from finetune_trainer.runtime.errors import RetryableError, StageError, UserError
from finetune_trainer.runtime.stage import Report, run_stage
from finetune_trainer.runtime.telemetry import make_rank_folder, read_rank_files
from finetune_trainer.training import tracking

POLL_SECONDS = 0.25
TOLD = set(Progress.model_fields) - {"stage", "attempt", "ranks", "stalled"}


def train(run: RunConfig, report: Report, stop: Stop) -> StageResult:
    """Start this pod's ranks, follow them to their end, and say how it went."""
    plan = run.require_plan()
    node_rank = int(os.environ.get("JOB_COMPLETION_INDEX", "0"))
    host = run.master_host or "127.0.0.1"
    report.update("starting the ranks", total_steps=plan.total_steps)
    threading.Thread(target=read_ahead, args=(run,), daemon=True).start()
    with make_rank_folder() as name:
        folder = Path(name)
        # The history is written by rank 0, so by a child of the first pod.
        tracked = tracking.run_trackers(run, lambda: stop.requested) if node_rank == 0 else nullcontext()
        left = False
        if not stop.requested:
            with tracked:
                left = follow(Ranks(plan, host, node_rank, folder), folder, report, stop)
        return ending(run, folder, node_rank, stop.requested or left, report.snapshot().stalled)


def follow(processes: Ranks, folder: Path, report: Report, stop: Stop) -> bool:
    """Report what the ranks tell until they have ended, and end those that no longer live.

    Returns whether one was asked to end, and not by this process, before it had anything to save.
    """
    signalled: set[int] = set()
    lost: list[RankProgress] = []
    dog = Watchdog()
    report.watch(dog.ailment)
    while processes.poll() is None:
        ranks = read_rank_files(folder)
        dog.look(ranks)
        if stop.requested:
            pass_on_stop(ranks, signalled)
        lost = lost or dog.lost(stop.requested)
        if lost:
            named = {rank.rank for rank in lost}
            processes.end({rank["pid"] for rank in ranks if rank["rank"] in named})
        if ranks:
            aggregate(ranks, report, lost or stalled(dog.silent(), ranks))
        time.sleep(POLL_SECONDS)
    report.watch(None)
    aggregate(read_rank_files(folder), report, report.snapshot().stalled)
    return processes.left


def pass_on_stop(ranks: list[dict[str, Any]], signalled: set[int]) -> None:
    """Ask every rank that has told of itself to stop, once; the others are asked when they have."""
    for rank in ranks:
        if rank["pid"] not in signalled:
            signalled.add(rank["pid"])
            try:
                os.kill(rank["pid"], signal.SIGTERM)
            except ProcessLookupError:
                continue


def aggregate(ranks: list[dict[str, Any]], report: Report, silent: list[RankProgress]) -> None:
    """Progress of this pod: what its first rank tells, a heartbeat for each rank, and who has
    none."""
    if not ranks:
        return
    told = {name: value for name, value in ranks[0].items() if name in TOLD}
    report.update(**{**told, "ranks": [heartbeat_of(rank) for rank in ranks], "stalled": silent})


def ending(
    run: RunConfig,
    folder: Path,
    node_rank: int,
    stopped: bool,
    silent: list[RankProgress] | None = None,
) -> StageResult:
    """The result of this pod from what its ranks left behind; raises when they failed.

    `silent` are ranks that gave no sign of life until they were ended, or the others gave up.
    """
    plan = run.require_plan()
    errors = [json.loads(path.read_bytes()) for path in folder.glob("error-*.json")]
    results = [json.loads(path.read_bytes()) for path in sorted(folder.glob("result-*.json"))]
    lost = all(error["failure"]["reason"] == "PeerLost" for error in errors)
    if errors and not (lost and (stopped or silent)):
        raise first_error(errors)
    if len(results) == plan.gpus_per_node:
        facts = TrainFacts.model_validate(results[0]["train"]) if node_rank == 0 else None
        finished = all(result["finished"] for result in results)
        return StageResult(
            stage="train",
            attempt=run.attempt,
            outcome="Succeeded" if finished else "Preempted",
            train=facts,
        )
    if stopped:
        return StageResult(stage="train", attempt=run.attempt, outcome="Preempted")
    if not read_rank_files(folder):
        raise RetryableError(
            "RendezvousFailed",
            "No training process told of itself.",
            "Look at the log of this pod and at whether all pods of this attempt came up.",
        )
    if silent:
        who = ", ".join(f"rank {rank.rank} on host {rank.host}" for rank in silent[:4])
        raise RetryableError(
            "RankStalled",
            f"No sign of life from {who}, after step {silent[0].step}.",
            "Look at that pod and its node: a device that hangs, a volume that does not answer, or "
            "a process that was stopped.",
        )
    raise RetryableError(
        "RankFailed",
        f"{plan.gpus_per_node - len(results)} of {plan.gpus_per_node} training "
        "processes ended without a word; they were probably killed for using too much memory.",
        "Look at the pod's last log lines and at its memory limit.",
    )


def first_error(errors: list[dict[str, Any]]) -> StageError:
    """What went wrong first; ranks that only lost a peer are consequences."""
    causes = [e for e in errors if e["failure"]["reason"] != "PeerLost"] or errors
    first = min(causes, key=lambda e: float(e["at"]))
    failure = first["failure"]
    kind = UserError if first["code"] == ExitCode.USER_ERROR else RetryableError
    return kind(
        failure["reason"], failure["message"], failure.get("remedy"), file=failure.get("file")
    )


if __name__ == "__main__":
    os.environ[BEGAN_ENV] = str(process_began())
    asked = Stop()
    raise SystemExit(run_stage("train", lambda run, report: train(run, report, asked), asked))
