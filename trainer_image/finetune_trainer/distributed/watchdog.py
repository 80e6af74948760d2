"""The first process of a pod watches its ranks: it names a rank without a beat, and then kills it.

A rank may stop although its process exists: stopped by a signal, stuck in a driver or on a volume.
Ranks of other pods would wait for it until a collective times out. Its heartbeat thread beats
whatever the main thread does, so a missing beat means that the process does not run. The thread
starts when the rank has met the others, so a slow start does not count as silence. A process that a
signal has stopped cannot be slow, and is killed sooner. Time counts only while this process itself
runs: after a pause of the whole pod no rank is blamed.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api.progress import RankProgress

from finetune_trainer.distributed.rank_timeouts import (
    KILL_FRACTION,
    SILENT_FRACTION,
    collective_timeout,
    silent_seconds,
)

MAX_COUNTED_SECONDS = 5.0
"""Longest time between two updates that counts; a longer one was a pause of this process."""
STUCK_SECONDS = 120.0
"""Seconds without an update after which this process itself is stuck."""
KILL_GRACE_SECONDS = 120.0
"""Seconds that a killed rank may take to end before the liveness probe fails."""
ENDED = "ZX"
"""States of a process that has ended."""
STOPPED = "T"
"""State of a process that a signal has stopped; a debugger's is another one."""


class Watchdog:
    """How long each rank of this pod has been silent, by this process's clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._timeout = collective_timeout().total_seconds()
        self._updated_at = clock()
        self._beats: dict[int, float] = {}
        self._silent: dict[int, float] = {}
        self._is_stopped: dict[int, bool] = {}
        self._progress: dict[int, RankProgress] = {}

    def update(self, rank_states: list[dict[str, Any]]) -> None:
        """Take the last reported states of the ranks; called several times a second."""
        now = self._clock()
        passed, self._updated_at = min(now - self._updated_at, MAX_COUNTED_SECONDS), now
        for reported in rank_states:
            if "beat_at" not in reported:
                continue
            rank, beat = reported["rank"], reported["beat_at"]
            silent = self._silent.get(rank, 0.0) + passed
            state = process_state(reported["pid"])
            is_alive = self._beats.get(rank) != beat or state in ENDED
            self._beats[rank], self._silent[rank] = beat, 0.0 if is_alive else silent
            self._progress[rank] = to_rank_progress(reported)
            self._is_stopped[rank] = state == STOPPED

    def silent_ranks(self) -> list[RankProgress]:
        """Ranks without a beat for long enough to be named."""
        return self._silent_longer_than(SILENT_FRACTION * self._timeout)

    def ranks_to_kill(self, is_stop_requested: bool) -> list[RankProgress]:
        """Ranks to give up; sooner if a signal stopped them, or if the pod must end soon."""
        lost = self._silent_longer_than(KILL_FRACTION * self._timeout)
        return [
            rank
            for rank in self.silent_ranks()
            if is_stop_requested or rank in lost or self._is_stopped[rank.rank]
        ]

    def liveness_error(self) -> str | None:
        """Reason to fail the liveness probe, or None."""
        stuck = self._clock() - self._updated_at
        if stuck > STUCK_SECONDS:
            return f"the first process of this pod has not moved for {stuck:.0f} s"
        for rank in self._silent_longer_than(KILL_FRACTION * self._timeout + KILL_GRACE_SECONDS):
            silent = self._silent[rank.rank]
            return f"rank {rank.rank} on host {rank.host} has been silent for {silent:.0f} s"
        return None

    def _silent_longer_than(self, seconds: float) -> list[RankProgress]:
        return [self._progress[r] for r, silent in sorted(self._silent.items()) if silent > seconds]


def merge_stalled_ranks(
    own: list[RankProgress], rank_states: list[dict[str, Any]]
) -> list[RankProgress]:
    """Silent ranks in order: `own` of this pod, and those of other pods that rank 0 reports."""
    found = {rank.rank: rank for rank in own}
    since = time.time() - silent_seconds()
    for silent in rank_states[0].get("silent", ()):
        found.setdefault(silent["rank"], RankProgress(**silent, updated_at=since))
    return [found[rank] for rank in sorted(found)]


def to_rank_progress(reported: dict[str, Any]) -> RankProgress:
    """A rank's last sign of life, from its rank file."""
    at = reported.get("beat_at", reported["updated_at"])
    return RankProgress(
        rank=reported["rank"], host=reported["host"], step=reported["step"], updated_at=at
    )


def process_state(pid: int) -> str:
    """The one-letter state of a process in Linux; "X" if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "X"
