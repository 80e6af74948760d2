"""The train stage: first process of a training pod, parent of its ranks.

It stays light, so that telemetry answers at once and outlives any crash of the libraries: it
starts torchrun, reads what the ranks tell (one small file each), passes a stop on to them, and
turns how they ended into one result. The training itself is in `worker`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from finetune_api.run import (
    RENDEZVOUS_PORT,
    ExitCode,
    Progress,
    RankProgress,
    RunConfig,
    StageResult,
    TrainFacts,
    TrainPlan,
)

from finetune_trainer import tracking
from finetune_trainer.heartbeat import silent_seconds
from finetune_trainer.stage import Report, RetryableError, StageError, UserError, run_stage
from finetune_trainer.telemetry import RANK_FOLDER_ENV, read_rank_files

POLL_SECONDS = 0.25
RENDEZVOUS_SECONDS = 600.0
PORT_ENV = "FINETUNE_RENDEZVOUS_PORT"
TOLD = set(Progress.model_fields) - {"stage", "attempt", "ranks", "stalled"}


def train(run: RunConfig, report: Report) -> StageResult:
    """Start this pod's ranks, follow them to their end, and say how it went."""
    assert run.plan is not None
    stop = {"asked": False}
    signal.signal(signal.SIGTERM, lambda *_: stop.update(asked=True))
    node_rank = int(os.environ.get("JOB_COMPLETION_INDEX", "0"))
    host = run.master_host or "127.0.0.1"
    report.update("waiting for the first pod", total_steps=run.plan.total_steps)
    await_host(host, stop)
    report.update("starting the ranks")
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder = Path(name)
        # The history is written by rank 0, so by a child of the first pod.
        tracked = tracking.beside(run, lambda: stop["asked"]) if node_rank == 0 else nullcontext()
        if not stop["asked"]:
            with tracked:
                follow(torchrun(run.plan, host, node_rank, folder), folder, report, stop)
        return ending(run, folder, node_rank, stop["asked"], report.snapshot().stalled)


def await_host(host: str, stop: dict[str, bool]) -> None:
    """Wait until the name of the pod with index 0 resolves: its Service has just been made."""
    deadline = time.monotonic() + RENDEZVOUS_SECONDS
    while not stop["asked"]:
        try:
            socket.getaddrinfo(host, None)
        except OSError as error:
            if time.monotonic() > deadline:
                raise RetryableError(
                    "RendezvousTimeout",
                    f"The host {host} of the first pod has no address: {error}.",
                    "Look at the other pods of this attempt and at the cluster's DNS.",
                ) from error
            time.sleep(POLL_SECONDS)
        else:
            return


def torchrun(plan: TrainPlan, host: str, node_rank: int, folder: Path) -> "subprocess.Popen[bytes]":
    """Start one rank per device; no restarts, because the operator replaces the whole gang."""
    port = os.environ.get(PORT_ENV, str(RENDEZVOUS_PORT))
    command = [sys.executable, "-m", "torch.distributed.run"]
    command += ["--nnodes", str(plan.nodes), "--nproc-per-node", str(plan.gpus_per_node)]
    command += ["--node-rank", str(node_rank), "--master-addr", host, "--master-port", port]
    command += ["--max-restarts", "0", "-m", "finetune_trainer.worker"]
    threads = max(1, len(os.sched_getaffinity(0)) // plan.gpus_per_node)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, RANK_FOLDER_ENV: str(folder)}
    # A group of its own: a signal to this process's group must not reach the ranks twice.
    return subprocess.Popen(command, env=environment, start_new_session=True)


def follow(
    process: "subprocess.Popen[bytes]", folder: Path, report: Report, stop: dict[str, bool]
) -> None:
    """Report what the ranks tell until torchrun ends."""
    signalled: set[int] = set()
    while process.poll() is None:
        ranks = read_rank_files(folder)
        if ranks:
            aggregate(ranks, report, silent_ranks(ranks))
        if stop["asked"]:
            pass_on_stop(process, ranks, signalled)
        time.sleep(POLL_SECONDS)
    aggregate(read_rank_files(folder), report, report.snapshot().stalled)


def pass_on_stop(
    process: "subprocess.Popen[bytes]", ranks: list[dict[str, Any]], signalled: set[int]
) -> None:
    """Ask every rank to stop, once.

    The ranks and not torchrun, which would kill them 30 s later, checkpoint or not. Before any
    rank has told of itself there is nothing to save, and torchrun is what can be stopped.
    """
    if not ranks:
        if process.pid not in signalled:
            signalled.add(process.pid)
            process.terminate()
        return
    for rank in ranks:
        if rank["pid"] not in signalled:
            signalled.add(rank["pid"])
            try:
                os.kill(rank["pid"], signal.SIGTERM)
            except ProcessLookupError:
                continue


def aggregate(ranks: list[dict[str, Any]], report: Report, stalled: list[RankProgress]) -> None:
    """Progress of this pod: what its first rank tells, a heartbeat for each rank, and who has
    none."""
    if not ranks:
        return
    told = {name: value for name, value in ranks[0].items() if name in TOLD}
    report.update(**{**told, "ranks": [heartbeat_of(rank) for rank in ranks], "stalled": stalled})


def heartbeat_of(rank: dict[str, Any]) -> RankProgress:
    """A rank's sign of life from its file."""
    at = rank.get("beat_at", rank["updated_at"])
    return RankProgress(rank=rank["rank"], host=rank["host"], step=rank["step"], updated_at=at)


def silent_ranks(ranks: list[dict[str, Any]]) -> list[RankProgress]:
    """Ranks without a sign of life, by rank: of this pod, and those that rank 0 misses."""
    now, limit = time.time(), silent_seconds()
    here = [heartbeat_of(rank) for rank in ranks if "beat_at" in rank and is_running(rank["pid"])]
    found = {rank.rank: rank for rank in here if now - rank.updated_at > limit}
    for missed in ranks[0].get("silent", ()):
        found.setdefault(missed["rank"], RankProgress(**missed, updated_at=now - limit))
    return [found[rank] for rank in sorted(found)]


def is_running(pid: int) -> bool:
    """Whether a process exists; one that has been killed is no stalled one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def ending(
    run: RunConfig,
    folder: Path,
    node_rank: int,
    stopped: bool,
    stalled: list[RankProgress] | None = None,
) -> StageResult:
    """The result of this pod from what its ranks left behind; raises when they failed.

    `stalled` are ranks that lived without a sign of life until the others gave up.
    """
    assert run.plan is not None
    errors = [json.loads(path.read_bytes()) for path in folder.glob("error-*.json")]
    results = [json.loads(path.read_bytes()) for path in sorted(folder.glob("result-*.json"))]
    lost = all(error["failure"]["reason"] == "PeerLost" for error in errors)
    if errors and not (stopped and lost):
        raise first_error(errors)
    if len(results) == run.plan.gpus_per_node:
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
            "No training process was started: torchrun gave up before all pods had met.",
            "Look at the log of this pod and at whether all pods of this attempt came up.",
        )
    if stalled:
        who = ", ".join(f"rank {rank.rank} on host {rank.host}" for rank in stalled[:4])
        raise RetryableError(
            "RankStalled",
            f"No sign of life from {who}, after step {stalled[0].step}.",
            "Look at that pod and its node: a device that hangs, a volume that does not answer, or "
            "a process that was stopped.",
        )
    raise RetryableError(
        "RankFailed",
        f"{run.plan.gpus_per_node - len(results)} of {run.plan.gpus_per_node} training "
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
    raise SystemExit(run_stage("train", train))
