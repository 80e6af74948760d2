"""Starts the ranks of a pod, and on the first pod the store at which all ranks meet.

What torchrun does, but at once: its agent imports PyTorch before it starts a rank, and waits for
the other pods before that. Here the store and every rank import their libraries at the same time,
and ranks wait for each other only when they have something to do together. The store is a process
of its own, so that it outlives any rank: the others must be able to tell who is gone.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence, Set
from datetime import timedelta
from pathlib import Path
from typing import Any

from finetune_api.run import RENDEZVOUS_PORT, ExitCode, RunConfig, TrainPlan

from finetune_trainer.runtime.errors import RetryableError
from finetune_trainer.runtime.telemetry import RANK_FOLDER_ENV

PORT_ENV = "FINETUNE_RENDEZVOUS_PORT"
MEETING_ENV = "FINETUNE_MEETING"
"""Tells a rank that a store waits for it; without it torchrun has started the rank."""
RENDEZVOUS_SECONDS = 600.0
PATIENCE_SECONDS = 30.0
"""From the request to end until a process is killed."""
POLL_SECONDS = 0.25
LOOK_AGAIN = timedelta(seconds=2)


class Ranks:
    """The processes of this pod, handled as one."""

    def __init__(self, plan: TrainPlan, host: str, node_rank: int, folder: Path) -> None:
        """Start one rank per device; no restarts, because the operator replaces the whole gang."""
        port = os.environ.get(PORT_ENV, str(RENDEZVOUS_PORT))
        self._store = (
            start("finetune_trainer.distributed.launcher", port) if node_rank == 0 else None
        )
        each, count = plan.gpus_per_node, plan.world_size
        threads = max(1, len(os.sched_getaffinity(0)) // each)
        shared = {
            MEETING_ENV: "1",
            RANK_FOLDER_ENV: str(folder),
            "MASTER_ADDR": host,
            "MASTER_PORT": port,
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(each),
            "GROUP_RANK": str(node_rank),
        }
        self._ranks = [
            start(
                "finetune_trainer.training.worker",
                **{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)), **shared},
                RANK=str(node_rank * each + local),
                LOCAL_RANK=str(local),
            )
            for local in range(each)
        ]
        self._kill_at: float | None = None
        self.left = False
        """Whether one was asked to end, by somebody else, before it had anything to save."""

    def poll(self) -> int | None:
        """None while a rank runs; when one fails the others are ended. The exit code then."""
        codes = [rank.poll() for rank in self._ranks]
        if self._kill_at is None:
            self.left = left_early(codes)
        lost_store = self._store is not None and self._store.poll() is not None
        if None not in codes:
            self._end_store()
            return max(abs(code) for code in codes if code is not None)
        if any(codes) or lost_store:
            self.end(set())
        late = time.monotonic() - self._kill_at if self._kill_at is not None else 0.0
        if late > 0:
            for rank in self._ranks:
                rank.kill()
        if late > PATIENCE_SECONDS:
            # The kernel does not let go of it: a driver or a volume hangs. The pod ends anyway.
            self._end_store()
            return 1
        return None

    def end(self, lost: Set[int]) -> None:
        """Ask every rank to end, once, and kill the processes `lost`, which do not listen."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + PATIENCE_SECONDS
            for rank in self._ranks:
                rank.kill() if rank.pid in lost else rank.terminate()

    def _end_store(self) -> None:
        if self._store is not None:
            self._store.kill()
            self._store.wait()


def left_early(codes: Sequence[int | None]) -> bool:
    """Whether a rank left because it was asked to; others may have lost it by now, and say so."""
    return ExitCode.PREEMPTED in codes and {None, 0, 1, ExitCode.PREEMPTED}.issuperset(codes)


def start(module: str, *arguments: str, **environment: str) -> "subprocess.Popen[bytes]":
    """Run a module as a child."""
    command = [sys.executable, "-m", module, *arguments]
    # A group of its own: a signal to this process's group must not reach the ranks twice.
    return subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True)


def meet() -> Any:
    """Wait at the store until every rank is there; returns the store for the process group.

    Raises RetryableError RendezvousFailed.
    """
    from torch import distributed as dist

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    deadline = time.monotonic() + RENDEZVOUS_SECONDS
    await_host(host, deadline)

    def connect() -> Any:
        return dist.TCPStore(host, port, is_master=False, timeout=LOOK_AGAIN)

    store = patiently(connect, deadline, f"Nothing answers on {host}:{port}.")
    store.set(f"here/{rank}", "")
    others = [f"here/{other}" for other in range(count)]
    missing = f"Not all {count} ranks came to {host}:{port}."
    patiently(lambda: store.wait(others, LOOK_AGAIN), deadline, missing)
    return dist.PrefixStore("group", store)


def patiently(attempt: Callable[[], Any], deadline: float, complaint: str) -> Any:
    """What `attempt` gives as soon as it no longer ends with an error of the network."""
    from torch import distributed as dist

    while True:
        try:
            return attempt()
        except dist.DistError as error:
            if time.monotonic() > deadline:
                raise RetryableError(
                    "RendezvousFailed",
                    complaint,
                    "Look at whether all pods of this attempt came up, and at their logs.",
                ) from error


def await_host(host: str, deadline: float) -> None:
    """Wait until the name of the pod with index 0 resolves: its Service has just been made."""
    while True:
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


def read_ahead(run: RunConfig) -> None:
    """Let the kernel read the weights while the ranks import their libraries.

    Nothing where they would fill more than half of the memory that is free.
    """
    if run.model is None or run.model.weight_bytes * 2 > free_memory():
        return
    for path in sorted((Path(run.paths.model_cache) / run.model.folder).glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        except OSError:
            # It is only a hint; whoever loads the model tells what is wrong with it.
            return


def free_memory() -> int:
    """Bytes that the host could give."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def keep_store(port: int) -> None:
    """Be the store until the parent ends."""
    parent = os.getppid()
    from torch.distributed import TCPStore

    keep = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    while os.getppid() == parent:
        time.sleep(1.0)
    del keep


if __name__ == "__main__":
    keep_store(int(sys.argv[1]))
