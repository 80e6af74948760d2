"""Who is alive and who is waited for: a second thread in every rank.

When one rank of many stops, all others wait for it inside a library, and what the library says in
the end is that it timed out. So every rank's thread tells the others, through the store at which
they met, that it lives and where its main thread is. A rank that is silent is named at once by
rank 0; before a collective would time out, those who wait look who does not wait, and end with its
name. Counts are compared and no clocks: hosts need not agree on the time.
"""

import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, Protocol

from finetune_trainer.stage import RetryableError

log = logging.getLogger("finetune")

TIMEOUT_ENV = "FINETUNE_COLLECTIVE_TIMEOUT"
TIMEOUT_SECONDS = 900.0
BEATS = 60
"""In the time after which a silent rank is given up; a beat is no longer than a second."""
SILENT = 0.1
"""Share of the limit after which a rank that does not beat is named."""
GIVE_UP = 0.8
"""Share of the limit after which ranks that waited all the time end."""
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
    return timedelta(seconds=float(os.environ.get(TIMEOUT_ENV, TIMEOUT_SECONDS)))


def silent_seconds() -> float:
    """After how long without a sign of life a rank is named."""
    return SILENT * collective_timeout().total_seconds()


class Heartbeat:
    """The second thread of one rank."""

    def __init__(self, tell: Teller, give_up: Callable[[BaseException], Any]) -> None:
        """Start it, in a joined process group; `give_up` must end the process."""
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
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        moves, waiting_since = self._tell.moves, time.monotonic()
        seen: dict[int, tuple[int, float]] = {}
        try:
            while not self._stop.wait(self._every):
                waits = self._beat()
                if self._rank == 0:
                    self._name_the_silent(seen)
                if not waits or moves != self._tell.moves:
                    moves, waiting_since = self._tell.moves, time.monotonic()
                elif time.monotonic() - waiting_since > GIVE_UP * self._limit:
                    self._end_if_stalled()
        except RuntimeError as error:
            # The store is gone: the process that kept it has ended, and with it the run.
            log.info("no more heartbeats: %s", str(error).split("\n", 1)[0])

    def _beat(self) -> bool:
        """Tell the others; returns whether the main thread waits for them."""
        self._count += 1
        waits, place = whereabouts(sys._current_frames().get(self._main or 0))
        step = int(self._tell.state.get("step") or 0)
        beat = Beat(self._rank, socket.gethostname(), self._count, step, waits, place)
        self._store.set(f"beat/{self._rank}", json.dumps(asdict(beat)))
        self._tell.beat()
        return waits

    def _beats(self) -> list[Beat]:
        keys = [f"beat/{rank}" for rank in range(self._world)]
        # Ranks begin to beat when they have joined, so that none is missing for long.
        return [Beat(**json.loads(text)) for text in self._store.multi_get(keys)]

    def _name_the_silent(self, seen: dict[int, tuple[int, float]]) -> None:
        now, silent = time.monotonic(), []
        for beat in self._beats():
            count, since = seen.get(beat.rank, (0, now))
            if count != beat.count:
                seen[beat.rank] = beat.count, now
            elif now - since > SILENT * self._limit:
                silent.append({"rank": beat.rank, "host": beat.host, "step": beat.step})
        self._tell.beat(silent=silent)

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


def whereabouts(frame: FrameType | None) -> tuple[bool, str]:
    """Whether a thread waits for other ranks, and the innermost function of ours it is in.

    To wait for files (`waiting`) may take hours, and is no sign of anything.
    """
    waits = False
    while frame:
        name = frame.f_code.co_filename
        if "finetune_trainer/" in name:
            file = name.rsplit("finetune_trainer/", 1)[1]
            return waits and file != "waiting.py", f"{file}:{frame.f_code.co_name}"
        waits = waits or any(part in name for part in WAITS)
        frame = frame.f_back
    return waits, "?"
