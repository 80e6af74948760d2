"""Starts the ranks of a pod, and on the first pod the store at which all ranks meet.

torchrun does the same, but in sequence: its agent waits for the other pods, imports PyTorch, and
then starts the ranks. Here the store and every rank import their libraries at the same time, and
ranks wait for each other only before their first collective. The store is a process of its own, so
that it outlives any rank: the other ranks need it to find out which one is gone. A rank continues
in `training.worker`.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence, Set
from datetime import timedelta
from pathlib import Path
from typing import Any

from finetune_api.protocol import RENDEZVOUS_PORT, RENDEZVOUS_TIMEOUT_ENV, ExitCode
from finetune_api.run_config import RunConfig
from finetune_api.train_plan import TrainPlan

from finetune_trainer.runtime.errors import RetryableError
from finetune_trainer.runtime.telemetry import RANK_FOLDER_ENV

PORT_ENV = "FINETUNE_RENDEZVOUS_PORT"
STORE_ENV = "FINETUNE_MEETING"
"""Set for ranks that have a store to meet at; torchrun does not set it for its ranks."""
RENDEZVOUS_SECONDS = 600.0
"""Time until all ranks must have started, where RENDEZVOUS_TIMEOUT_ENV sets none."""
KILL_AFTER_SECONDS = 30.0
"""From SIGTERM until a rank is killed."""
POLL_SECONDS = 0.25
STORE_TIMEOUT = timedelta(seconds=2)
"""Of one try to reach the store, which is repeated until the ranks' patience is over."""


class Ranks:
    """The processes of this pod, handled as one."""

    def __init__(self, plan: TrainPlan, host: str, node_rank: int, folder: Path) -> None:
        """Start one rank per device; no restarts, because the operator replaces the whole gang."""
        port = os.environ.get(PORT_ENV, str(RENDEZVOUS_PORT))
        self._store = (
            start_module("finetune_trainer.distributed.launcher", port) if node_rank == 0 else None
        )
        local_world_size = plan.gpus_per_node
        threads = max(1, len(os.sched_getaffinity(0)) // local_world_size)
        shared = {
            STORE_ENV: "1",
            RANK_FOLDER_ENV: str(folder),
            "MASTER_ADDR": host,
            "MASTER_PORT": port,
            "WORLD_SIZE": str(plan.world_size),
            "LOCAL_WORLD_SIZE": str(local_world_size),
            "GROUP_RANK": str(node_rank),
        }
        self._ranks = [
            start_module(
                "finetune_trainer.training.worker",
                **{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)), **shared},
                RANK=str(node_rank * local_world_size + local),
                LOCAL_RANK=str(local),
            )
            for local in range(local_world_size)
        ]
        self._kill_at: float | None = None
        self.is_preempted = False
        """Whether a rank received SIGTERM from another process, before it had anything to save."""

    def poll(self) -> int | None:
        """The exit code of the ranks, or None while one runs.

        When a rank fails, the others get SIGTERM, and SIGKILL half a minute later.
        """
        codes = [rank.poll() for rank in self._ranks]
        if self._kill_at is None:
            self.is_preempted = is_preempted(codes)
        lost_store = self._store is not None and self._store.poll() is not None
        if None not in codes:
            self._end_store()
            return max(abs(code) for code in codes if code is not None)
        if any(codes) or lost_store:
            self.terminate(set())
        late = time.monotonic() - self._kill_at if self._kill_at is not None else 0.0
        if late > 0:
            for rank in self._ranks:
                rank.kill()
        if late > KILL_AFTER_SECONDS:
            # The kernel cannot end a rank, because a driver or a volume hangs. The pod ends anyway.
            self._end_store()
            return 1
        return None

    def terminate(self, lost: Set[int]) -> None:
        """Send every rank SIGTERM, once; the processes `lost`, which do not run, get SIGKILL."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + KILL_AFTER_SECONDS
            for rank in self._ranks:
                rank.kill() if rank.pid in lost else rank.terminate()

    def _end_store(self) -> None:
        if self._store is not None:
            self._store.kill()
            self._store.wait()


def is_preempted(codes: Sequence[int | None]) -> bool:
    """Whether a rank ended because of SIGTERM; others may have failed since without it.

    A rank that has just been started has no handler yet, so the kernel ends it.
    """
    stopped = {ExitCode.PREEMPTED, -signal.SIGTERM}
    return not stopped.isdisjoint(codes) and {None, 0, 1, *stopped}.issuperset(codes)


def start_module(module: str, *arguments: str, **environment: str) -> "subprocess.Popen[bytes]":
    """Run a module as a child process."""
    command = [sys.executable, "-m", module, *arguments]
    # In a process group of its own: a signal to this process's group must not reach a rank twice.
    return subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True)


def join_store() -> Any:
    """Wait until every rank has joined the store; returns the store for the process group.

    Raises RetryableError RendezvousFailed or RendezvousTimeout.
    """
    from torch import distributed as dist

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    patience = float(os.environ.get(RENDEZVOUS_TIMEOUT_ENV) or RENDEZVOUS_SECONDS)
    deadline = time.monotonic() + patience
    wait_for_host(host, deadline)

    def connect() -> Any:
        return dist.TCPStore(host, port, is_master=False, timeout=STORE_TIMEOUT)

    store = retry_until(connect, deadline, f"Nothing answers on {host}:{port}.")
    store.set(f"here/{rank}", "")
    all_ranks = [f"here/{other}" for other in range(count)]
    message = f"Not all {count} ranks reached {host}:{port}."
    retry_until(lambda: store.wait(all_ranks, STORE_TIMEOUT), deadline, message)
    return dist.PrefixStore("group", store)


def retry_until(call: Callable[[], Any], deadline: float, message: str) -> Any:
    """The first result of `call` that is no network error.

    Raises RetryableError RendezvousFailed with `message` after the deadline (monotonic seconds).
    """
    from torch import distributed as dist

    while True:
        try:
            return call()
        except dist.DistError as error:
            if time.monotonic() > deadline:
                raise RetryableError(
                    "RendezvousFailed",
                    message,
                    "Check whether all pods of this attempt started, and read their logs.",
                ) from error


def wait_for_host(host: str, deadline: float) -> None:
    """Wait until the name of the first pod resolves; its Service was created just now."""
    while True:
        try:
            socket.getaddrinfo(host, None)
        except OSError as error:
            if time.monotonic() > deadline:
                raise RetryableError(
                    "RendezvousTimeout",
                    f"The host {host} of the first pod has no address: {error}.",
                    "Check the other pods of this attempt and the cluster's DNS.",
                ) from error
            time.sleep(POLL_SECONDS)
        else:
            return


def prefetch_weights(run: RunConfig) -> None:
    """Let the kernel read the weights while the ranks import their libraries.

    Does nothing where the weights would fill more than half of the available memory.
    """
    if run.model is None or run.model.weight_bytes * 2 > available_memory_bytes():
        return
    for path in sorted((Path(run.paths.model_cache) / run.model.folder).glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        except OSError:
            # It is only a hint; the rank that loads the model reports what is wrong.
            return


def available_memory_bytes() -> int:
    """MemAvailable of the host."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def serve_store(port: int) -> None:
    """Serve the store until the parent process ends."""
    parent = os.getppid()
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    while os.getppid() == parent:
        time.sleep(1.0)
    del store


if __name__ == "__main__":
    serve_store(int(sys.argv[1]))
