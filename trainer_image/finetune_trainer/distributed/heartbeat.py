"""Heartbeats: which ranks are alive and which rank the others wait for.

When one rank of many stops, all others wait for it inside a library, which reports no more than a
timeout in the end. So each rank has two more threads that report that it is alive and where its
main thread is: one reports to the first process of its pod, the other one to all ranks, through
the store at which they met, which may not answer. Rank 0 names a silent rank at once. Before a
collective would time out, the ranks that wait find out which ranks do not wait, and end with an
error that names those. A rank that has been silent for that long is given up even by ranks that
wait for file I/O, which may take hours. Beats are counted and no clocks are compared: hosts need
not agree on the time.
"""

import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from finetune_trainer.distributed.rank_timeouts import (
    BEATS_PER_TIMEOUT,
    GIVE_UP_FRACTION,
    SILENT_FRACTION,
    collective_timeout,
)
from finetune_trainer.runtime.errors import RetryableError
from finetune_trainer.runtime.host_name import get_host_name

log = logging.getLogger("finetune")

COLLECTIVES_FILE = str(Path(__file__).with_name("collectives.py"))
JOIN_SECONDS = 5.0
"""Longest wait for each thread at the end."""
COMMUNICATION_FILES = (
    "torch/distributed/",
    "torch/nn/parallel/",
    "torch/autograd/",
    "deepspeed/comm/",
)
"""Library files in which the main thread is while it waits for other ranks."""


class BeatReporter(Protocol):
    """The part of a RankReporter that a heartbeat needs."""

    state: dict[str, Any]
    report_count: int
    """How often the main thread has reported."""

    def report_beat(self, **fields: Any) -> None:
        """Stamp the time of a sign of life."""


@dataclass(frozen=True)
class Beat:
    """What a rank reports to the other ranks."""

    rank: int
    host: str
    count: int
    step: int
    is_waiting: bool
    """Whether its main thread is inside a library's communication."""
    place: str
    """Innermost function of this package that its main thread is in."""


class Heartbeat:
    """The two heartbeat threads of one rank."""

    def __init__(self, reporter: BeatReporter, give_up: Callable[[BaseException], Any]) -> None:
        """Start them, in a joined process group; `give_up` must end the process."""
        from torch import distributed as dist

        self._reporter, self._give_up = reporter, give_up
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._timeout = collective_timeout().total_seconds()
        self._interval = min(1.0, self._timeout / BEATS_PER_TIMEOUT)
        # A connection of its own: the main thread may be waiting on the other one.
        self._store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=self._timeout),
        )
        self._main_thread = threading.main_thread().ident
        self._count = 0
        self._store_answered_at = time.monotonic()
        # Set while this rank has waited for others for too long.
        self._waited_too_long = threading.Event()
        self._stop = threading.Event()
        self._beat = self._make_beat()
        self._store.set(f"beat/{self._rank}", json.dumps(asdict(self._beat)))
        self._threads = [
            threading.Thread(target=work, name="heartbeat", daemon=True)
            for work in (self._report_to_pod, self._report_to_ranks)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads; one that waits for a store that is gone ends with the process."""
        self._stop.set()
        for thread in self._threads:
            thread.join(JOIN_SECONDS)

    def _make_beat(self) -> Beat:
        self._count += 1
        is_waiting, place = locate_thread(sys._current_frames().get(self._main_thread or 0))
        step = int(self._reporter.state.get("step") or 0)
        self._reporter.report_beat()
        return Beat(self._rank, get_host_name(), self._count, step, is_waiting, place)

    def _report_to_pod(self) -> None:
        report_count, waiting_since = self._reporter.report_count, time.monotonic()
        give_up_seconds = GIVE_UP_FRACTION * self._timeout
        while not self._stop.wait(self._interval):
            self._beat = self._make_beat()
            now = time.monotonic()
            if not self._beat.is_waiting or report_count != self._reporter.report_count:
                report_count, waiting_since = self._reporter.report_count, now
                self._waited_too_long.clear()
            elif now - waiting_since > give_up_seconds:
                self._waited_too_long.set()
            if now - self._store_answered_at > give_up_seconds:
                self._give_up(store_lost_error(now - self._store_answered_at))

    def _report_to_ranks(self) -> None:
        checked_at = time.monotonic()
        seen: dict[int, tuple[int, float]] = {}
        try:
            while not self._stop.wait(self._interval):
                self._store.set(f"beat/{self._rank}", json.dumps(asdict(self._beat)))
                # All ranks must check, but reading the beats of all ranks often on every rank is
                # expensive in a large world.
                since_check = time.monotonic() - checked_at
                if self._rank == 0 or since_check > SILENT_FRACTION * self._timeout:
                    checked_at = time.monotonic()
                    self._check_other_ranks(seen)
                if self._waited_too_long.is_set():
                    self._give_up_if_stalled()
        except RuntimeError as error:
            # The process that kept the store has ended, and with it the run: the main thread's
            # connections to its pod are closed too. A store that only does not answer does not end
            # this wait; the other thread handles that.
            log.info("Heartbeats ended", extra={"error": str(error).split("\n", 1)[0]})
            self._store_answered_at = math.inf

    def _read_beats(self) -> list[Beat]:
        keys = [f"beat/{rank}" for rank in range(self._world_size)]
        # Ranks begin to beat when they have joined, so no key is missing for long.
        beats = [Beat(**json.loads(text)) for text in self._store.multi_get(keys)]
        self._store_answered_at = time.monotonic()
        return beats

    def _check_other_ranks(self, seen: dict[int, tuple[int, float]]) -> None:
        """Name silent ranks, and give up those that were silent for too long.

        `seen` maps each rank to its last beat's count and the time at which this rank first saw it.
        """
        beats, now = self._read_beats(), time.monotonic()
        for beat in beats:
            if beat.rank not in seen or seen[beat.rank][0] != beat.count:
                seen[beat.rank] = beat.count, now

        def silent_for(fraction: float) -> list[Beat]:
            limit = fraction * self._timeout
            return [beat for beat in beats if now - seen[beat.rank][1] > limit]

        if self._rank == 0:
            silent = [
                {"rank": beat.rank, "host": beat.host, "step": beat.step}
                for beat in silent_for(SILENT_FRACTION)
            ]
            self._reporter.report_beat(silent=silent)
        if lost := silent_for(GIVE_UP_FRACTION):
            self._give_up(rank_stalled_error(lost, self._timeout))

    def _give_up_if_stalled(self) -> None:
        before = self._read_beats()
        self._stop.wait(5 * self._interval)
        if stalled := find_stalled_ranks(before, self._read_beats()):
            self._give_up(rank_stalled_error(stalled, self._timeout))


def find_stalled_ranks(before: list[Beat], after: list[Beat]) -> list[Beat]:
    """Ranks that others wait for: those whose beats ended, or else those that do not wait.

    Empty where the beats do not show it, because all ranks wait or none does.
    """
    counts = {beat.rank: beat.count for beat in before}
    silent = [beat for beat in after if beat.count == counts[beat.rank]]
    if silent:
        return silent
    busy = [beat for beat in after if not beat.is_waiting]
    return busy if len(busy) < len(after) else []


def rank_stalled_error(stalled: list[Beat], timeout: float) -> RetryableError:
    """RankStalled; names up to four ranks. `timeout` is the collective timeout in seconds."""
    ranks = ", ".join(f"rank {b.rank} on host {b.host} in {b.place}" for b in stalled[:4])
    more = f" and {len(stalled) - 4} more" if stalled[4:] else ""
    return RetryableError(
        "RankStalled",
        f"The other ranks waited {GIVE_UP_FRACTION * timeout:.0f} s for {ranks}{more}, after step "
        f"{stalled[0].step}.",
        "Check that pod and its node: a device that hangs, a volume that does not answer, or a "
        "process that was stopped. The next attempt resumes from the last checkpoint.",
    )


def store_lost_error(seconds: float) -> RetryableError:
    """PeerLost: the host of the store has not answered for `seconds`."""
    host = os.environ["MASTER_ADDR"]
    return RetryableError(
        "PeerLost",
        f"The first pod, {host}, has not answered for {seconds:.0f} s.",
        "Check that pod and the network between the nodes.",
    )


def locate_thread(frame: FrameType | None) -> tuple[bool, str]:
    """Whether a thread waits for other ranks, and the innermost function of this package it is in.

    Collectives with a long timeout (collectives.py) wait for file I/O, which may take hours and is
    no sign of a hang.
    """
    is_waiting = False
    while frame:
        name = frame.f_code.co_filename
        if "finetune_trainer/" in name:
            file = name.rsplit("finetune_trainer/", 1)[1]
            return is_waiting and name != COLLECTIVES_FILE, f"{file}:{frame.f_code.co_name}"
        is_waiting = is_waiting or any(part in name for part in COMMUNICATION_FILES)
        frame = frame.f_back
    return is_waiting, "?"
