"""The first process of a pod looks after its ranks: one that no longer beats is named and ended.

A rank may stop although its process lives: stopped by a signal, stuck in a driver or on a volume.
Ranks of other pods would wait for it until a collective times out. Its second thread beats whatever
the first one does, so silence means that the process does not run; and it begins to beat only when
it has met the others, so a slow start is no silence. A process that a signal has stopped is no slow
one either, and is ended sooner. Time counts only while this process runs itself: after a pause of
the whole pod nobody is blamed.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api.run import RankProgress

from finetune_trainer.distributed.heartbeat import (
    END_SILENT,
    SILENT,
    collective_timeout,
    silent_seconds,
)

MOST = 5.0
"""Seconds between two looks that count; what is longer was a pause of this process."""
STILL = 120.0
"""Seconds without a look after which this process itself does not move."""
MARGIN = 120.0
"""Seconds that a silent rank has to end, before the pod says that it cannot end it."""
GONE = "ZX"
"""States of a process that has ended."""
STOPPED = "T"
"""State of a process that a signal has stopped; what a debugger holds is in another one."""


class Watchdog:
    """How long each rank of this pod has been silent, by this process's clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limit = collective_timeout().total_seconds()
        self._looked = clock()
        self._beats: dict[int, float] = {}
        self._silent: dict[int, float] = {}
        self._stopped: dict[int, bool] = {}
        self._names: dict[int, RankProgress] = {}

    def look(self, ranks: list[dict[str, Any]]) -> None:
        """Read what the ranks last told; called several times a second."""
        now = self._clock()
        passed, self._looked = min(now - self._looked, MOST), now
        for told in ranks:
            if "beat_at" not in told:
                continue
            rank, beat = told["rank"], told["beat_at"]
            silent = self._silent.get(rank, 0.0) + passed
            state = state_of(told["pid"])
            alive = self._beats.get(rank) != beat or state in GONE
            self._beats[rank], self._silent[rank] = beat, 0.0 if alive else silent
            self._names[rank] = heartbeat_of(told)
            self._stopped[rank] = state == STOPPED

    def silent(self) -> list[RankProgress]:
        """Ranks that are to be named."""
        return self._longer(SILENT * self._limit)

    def lost(self, stopping: bool) -> list[RankProgress]:
        """Ranks that are to be ended; sooner those that were stopped, or where the pod has little
        time to end itself."""
        late = self._longer(END_SILENT * self._limit)
        return [
            rank for rank in self.silent() if stopping or rank in late or self._stopped[rank.rank]
        ]

    def ailment(self) -> str | None:
        """What is wrong with this pod so that only its end can help; None where nothing is."""
        still = self._clock() - self._looked
        if still > STILL:
            return f"the first process of this pod has not moved for {still:.0f} s"
        for rank in self._longer(END_SILENT * self._limit + MARGIN):
            silent = self._silent[rank.rank]
            return f"rank {rank.rank} on host {rank.host} has been silent for {silent:.0f} s"
        return None

    def _longer(self, seconds: float) -> list[RankProgress]:
        return [self._names[r] for r, silent in sorted(self._silent.items()) if silent > seconds]


def stalled(own: list[RankProgress], ranks: list[dict[str, Any]]) -> list[RankProgress]:
    """Ranks without a sign of life, by rank: of this pod, and those that rank 0 misses."""
    found = {rank.rank: rank for rank in own}
    since = time.time() - silent_seconds()
    for missed in ranks[0].get("silent", ()):
        found.setdefault(missed["rank"], RankProgress(**missed, updated_at=since))
    return [found[rank] for rank in sorted(found)]


def heartbeat_of(rank: dict[str, Any]) -> RankProgress:
    """A rank's sign of life from its file."""
    at = rank.get("beat_at", rank["updated_at"])
    return RankProgress(rank=rank["rank"], host=rank["host"], step=rank["step"], updated_at=at)


def state_of(pid: int) -> str:
    """The state of a process as Linux names it in one letter; "X" of one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "X"
