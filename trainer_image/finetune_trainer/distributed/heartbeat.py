"""Who is alive and who is waited for: two more threads in every rank.

When one rank of many stops, all others wait for it inside a library, and what the library says in
the end is that it timed out. So each rank tells that it lives and where its main thread is: one
thread tells the first process of its pod, the other one all ranks, through the store at which they
met, which may not answer. A rank that is silent is named at once by rank 0; before a collective
would time out, those who wait look who does not wait, and end with its name. A rank that has been
silent for so long is given up even by those who wait for files, which may take hours. Counts are
compared and no clocks: hosts need not agree on the time.
"""

import json
import logging
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from finetune_api.run import COLLECTIVE_TIMEOUT_ENV

from finetune_trainer.runtime.errors import RetryableError

log = logging.getLogger("finetune")

COLLECTIVES = str(Path(__file__).with_name("collectives.py"))
TIMEOUT_SECONDS = 900.0
BEATS = 60
"""In the time after which a silent rank is given up; a beat is no longer than a second."""
SILENT = 0.1
"""Share of the limit after which a rank that does not beat is named."""
END_SILENT = 0.4
"""Share of the limit after which the first process of its pod ends a rank that does not beat."""
GIVE_UP = 0.8
"""Share of the limit after which ranks that waited all the time end."""
STOP_SECONDS = 5.0
"""Longest wait for the threads at the end."""
WAITS = ("torch/distributed/", "torch/nn/parallel/", "torch/autograd/", "deepspeed/comm/")
"""Files of libraries in which a main thread stands that waits for other ranks."""


class Teller(Protocol):
    """What a rank tells the first process of its pod."""

    state: dict[str, Any]
    moves: int
    """How often the main thread has told something."""

    def beat(self, **fields: Any) -> None:
        """Stamp the time of a sign of life."""


@dataclass(frozen=True)
class Beat:
    """What a rank tells the others."""

    rank: int
    host: str
    count: int
    step: int
    waits: bool
    """Whether its main thread stands in a library's communication."""
    place: str
    """Innermost function of this package that its main thread is in."""


def collective_timeout() -> timedelta:
    """How long a rank waits for others in a training step (FINETUNE_COLLECTIVE_TIMEOUT)."""
    return timedelta(seconds=float(os.environ.get(COLLECTIVE_TIMEOUT_ENV, TIMEOUT_SECONDS)))


def silent_seconds() -> float:
    """After how long without a sign of life a rank is named."""
    return SILENT * collective_timeout().total_seconds()


class Heartbeat:
    """The second and the third thread of one rank."""

    def __init__(self, tell: Teller, give_up: Callable[[BaseException], Any]) -> None:
        """Start them, in a joined process group; `give_up` must end the process."""
        from torch import distributed as dist

        self._tell, self._give_up = tell, give_up
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._limit = collective_timeout().total_seconds()
        self._every = min(1.0, self._limit / BEATS)
        # A connection of its own: the main thread may be waiting with the other one.
        self._store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=self._limit),
        )
        self._main = threading.main_thread().ident
        self._count = 0
        self._answered = time.monotonic()
        # Set while this rank has waited for others for too long.
        self._doubts = threading.Event()
        self._stop = threading.Event()
        self._beat = self._take_beat()
        self._store.set(f"beat/{self._rank}", json.dumps(asdict(self._beat)))
        self._threads = [
            threading.Thread(target=work, name="heartbeat", daemon=True)
            for work in (self._tell_here, self._tell_all)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads; one that waits for a store that has just gone ends with the process."""
        self._stop.set()
        for thread in self._threads:
            thread.join(STOP_SECONDS)

    def _take_beat(self) -> Beat:
        self._count += 1
        waits, place = whereabouts(sys._current_frames().get(self._main or 0))
        step = int(self._tell.state.get("step") or 0)
        self._tell.beat()
        return Beat(self._rank, socket.gethostname(), self._count, step, waits, place)

    def _tell_here(self) -> None:
        moves, waiting_since = self._tell.moves, time.monotonic()
        while not self._stop.wait(self._every):
            self._beat = self._take_beat()
            now = time.monotonic()
            if not self._beat.waits or moves != self._tell.moves:
                moves, waiting_since = self._tell.moves, now
                self._doubts.clear()
            elif now - waiting_since > GIVE_UP * self._limit:
                self._doubts.set()
            if now - self._answered > GIVE_UP * self._limit:
                self._give_up(no_answer(now - self._answered))

    def _tell_all(self) -> None:
        looked = time.monotonic()
        seen: dict[int, tuple[int, float]] = {}
        try:
            while not self._stop.wait(self._every):
                self._store.set(f"beat/{self._rank}", json.dumps(asdict(self._beat)))
                # All ranks must look, but that each asks for all others is dear in a large world.
                if self._rank == 0 or time.monotonic() - looked > SILENT * self._limit:
                    looked = time.monotonic()
                    self._look_at_others(seen)
                if self._doubts.is_set():
                    self._end_if_stalled()
        except RuntimeError as error:
            # The process that kept the store has ended, and with it the run: the main thread's
            # connections to its pod are closed too. One that only does not answer does not end
            # this wait; the other thread sees to that.
            log.info("no more heartbeats: %s", str(error).split("\n", 1)[0])
            self._answered = math.inf

    def _beats(self) -> list[Beat]:
        keys = [f"beat/{rank}" for rank in range(self._world)]
        # Ranks begin to beat when they have joined, so that none is missing for long.
        beats = [Beat(**json.loads(text)) for text in self._store.multi_get(keys)]
        self._answered = time.monotonic()
        return beats

    def _look_at_others(self, seen: dict[int, tuple[int, float]]) -> None:
        beats, now = self._beats(), time.monotonic()
        for beat in beats:
            if beat.rank not in seen or seen[beat.rank][0] != beat.count:
                seen[beat.rank] = beat.count, now

        def silent(share: float) -> list[Beat]:
            return [beat for beat in beats if now - seen[beat.rank][1] > share * self._limit]

        if self._rank == 0:
            named = [(beat.rank, beat.host, beat.step) for beat in silent(SILENT)]
            fields = ("rank", "host", "step")
            self._tell.beat(silent=[dict(zip(fields, each, strict=True)) for each in named])
        if gone := silent(GIVE_UP):
            self._give_up(rank_stalled(gone, self._limit))

    def _end_if_stalled(self) -> None:
        before = self._beats()
        self._stop.wait(5 * self._every)
        if named := stalled(before, self._beats()):
            self._give_up(rank_stalled(named, self._limit))


def stalled(before: list[Beat], after: list[Beat]) -> list[Beat]:
    """Ranks that others wait for: those that ceased to beat, or else those that do not wait.

    Empty where that cannot be told, because all wait or none does.
    """
    counts = {beat.rank: beat.count for beat in before}
    silent = [beat for beat in after if beat.count == counts[beat.rank]]
    if silent:
        return silent
    busy = [beat for beat in after if not beat.waits]
    return busy if len(busy) < len(after) else []


def rank_stalled(named: list[Beat], limit: float) -> RetryableError:
    """The error that names them."""
    who = ", ".join(f"rank {beat.rank} on host {beat.host} in {beat.place}" for beat in named[:4])
    more = f" and {len(named) - 4} more" if named[4:] else ""
    return RetryableError(
        "RankStalled",
        f"The other ranks waited {GIVE_UP * limit:.0f} s for {who}{more}, after step "
        f"{named[0].step}.",
        "Look at that pod and its node: a device that hangs, a volume that does not answer, or a "
        "process that was stopped. The next attempt resumes from the last checkpoint.",
    )


def no_answer(seconds: float) -> RetryableError:
    """The error where the host is gone that kept the store."""
    host = os.environ["MASTER_ADDR"]
    return RetryableError(
        "PeerLost", f"The first pod, {host}, has not answered for {seconds:.0f} s."
    )


def whereabouts(frame: FrameType | None) -> tuple[bool, str]:
    """Whether a thread waits for other ranks, and the innermost function of ours it is in.

    Collectives with a long timeout (collectives.py) wait for file I/O, which may take hours and is
    no sign of a hang.
    """
    waits = False
    while frame:
        name = frame.f_code.co_filename
        if "finetune_trainer/" in name:
            file = name.rsplit("finetune_trainer/", 1)[1]
            return waits and name != COLLECTIVES, f"{file}:{frame.f_code.co_name}"
        waits = waits or any(part in name for part in WAITS)
        frame = frame.f_back
    return waits, "?"
