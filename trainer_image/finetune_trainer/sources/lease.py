"""Whose turn it is to gather a model: a lease in files, as any shared volume can hold them.

Who wants its turn creates `.turn-<name>-<number>`, one above the newest there is; an exclusive
create has one winner, also on NFS. The holder writes to its file every few seconds. Who waits
measures with its own clock for how long it has looked at a file that does not change: no two
clocks are compared, and time in which it could not look (a frozen node, a server that does not
answer) does not count. A holder that died or froze is passed over, so no turn is ever stuck.

The lease saves work and is not what keeps files whole: a holder that was passed over may wake up
and believe in its turn. What it writes must therefore lie under a name that holds its `token`, and
the next holder renames that away before it uses it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

PREFIX = ".turn-"
_NUMBERED = re.compile(rf"{re.escape(PREFIX)}(.+)-([0-9]+)")


class Lease:
    """One process that wants its turn at `name` inside `folder`, once."""

    BEAT = 5.0
    """Seconds between two signs of life of a holder."""
    SILENCE = 60.0
    """Seconds without one after which a holder is passed over."""
    POLL = 1.0
    """Seconds between two looks of one that waits."""

    def __init__(self, folder: Path, name: str, holder: str) -> None:
        """`holder` is told to those who wait."""
        self.token = uuid.uuid4().hex[:12]
        self.after_silence = False
        """Whether the holder before did not give its turn back."""
        self._folder = folder
        self._name = name
        self._holder = holder
        self._number = 0
        self._file = -1
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    @contextlib.contextmanager
    def held(self, waits: Callable[[str], None]) -> Iterator[Lease]:
        """Wait for the turn and give it back at the end; `waits` is told who has it."""
        seen, silent, looked = (0, b""), 0.0, time.monotonic()
        while not self._take(dead=seen[0] if silent >= self.SILENCE else 0):
            newest = self._newest()
            now, at = (newest, self._content(newest)), time.monotonic()
            # Time in which we could not look says nothing about the holder.
            same = newest and now == seen
            silent = silent + min(at - looked, 2 * self.POLL) if same else 0.0
            seen, looked = now, at
            if newest and silent < self.SILENCE:
                waits(_holder_in(now[1]))
            if silent < self.SILENCE:
                time.sleep(self.POLL)
        try:
            yield self
        finally:
            self.give_back()

    def take_if_free(self) -> bool:
        """Take the turn if nobody has it."""
        return self._take(dead=0)

    def lost(self) -> bool:
        """Whether another process has taken the turn because we were silent for too long."""
        return self._newest() != self._number or self.token.encode() not in self._content(
            self._number
        )

    def give_back(self) -> None:
        """End the turn; somebody else's is not touched."""
        self._over.set()
        self._thread.join(self.BEAT)
        if not self.lost():
            self._path(self._number).unlink(missing_ok=True)
        if not self._thread.is_alive():  # else the volume hangs, and the number stays in use
            os.close(self._file)

    def _take(self, dead: int) -> bool:
        """Try to become the newest, where there is none but the one whose holder is dead."""
        newest = self._newest()
        if newest and newest != dead:
            return False
        number = newest + 1
        try:
            self._file = os.open(self._path(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        self._number, self.after_silence = number, newest > 0
        try:
            self._write(0)
            newest = self._newest()
        finally:
            if newest != number:  # the volume is full, or another one is newer
                os.close(self._file)
                self._path(number).unlink(missing_ok=True)
        if newest != number:
            return False
        for older in range(max(1, number - 8), number):
            self._path(older).unlink(missing_ok=True)
        self._thread.start()
        return True

    def _live(self) -> None:
        beat = 0
        while not self._over.wait(self.BEAT):
            beat += 1
            # A volume that fails now may answer at the next beat.
            with contextlib.suppress(OSError):
                self._write(beat)

    def _write(self, beat: int) -> None:
        # Through the descriptor: a holder that was passed over writes to a file without a name.
        told = {"holder": self._holder, "token": self.token, "beat": f"{beat:09d}"}
        os.pwrite(self._file, json.dumps(told).encode(), 0)
        os.fsync(self._file)

    def _newest(self) -> int:
        found = (_NUMBERED.fullmatch(path.name) for path in self._folder.glob(f"{PREFIX}*"))
        return max((int(m[2]) for m in found if m and m[1] == self._name), default=0)

    def _content(self, number: int) -> bytes:
        try:
            return self._path(number).read_bytes()
        except OSError:  # it has just gone
            return b""

    def _path(self, number: int) -> Path:
        return self._folder / f"{PREFIX}{self._name}-{number}"


def _holder_in(content: bytes) -> str:
    try:
        return str(json.loads(content)["holder"])
    except (ValueError, KeyError, TypeError):
        return "another job"
