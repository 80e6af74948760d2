"""A lease in files, as any shared volume can hold it: one process at a time downloads a model.

A process that wants the lease creates `.turn-<name>-<number>`, one above the newest that exists; an
exclusive create has one winner, also on NFS. The holder writes to its file every few seconds. A
process that waits measures with its own clock how long it has seen a file unchanged: no two clocks
are compared, and time in which it could not read (a frozen node, a server that does not answer)
does not count. A holder that died or froze loses the lease, so none is stuck.

The lease saves work; it is not what keeps files intact: a holder may resume after its lease has
expired. So everything that it writes must be in a folder whose name contains its `token`, and the
next holder renames that folder before using it.
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

LEASE_PREFIX = ".turn-"
_FILE_NAME = re.compile(rf"{re.escape(LEASE_PREFIX)}(.+)-([0-9]+)")


class Lease:
    """One request of one process for the lease `name` inside `folder`."""

    BEAT_SECONDS = 5.0
    """Between two signs of life of a holder."""
    SILENT_SECONDS = 60.0
    """Without a sign of life after which a holder loses the lease."""
    POLL_SECONDS = 1.0
    """Between two reads of a process that waits."""

    def __init__(self, folder: Path, name: str, holder: str) -> None:
        """`holder` is the name that waiting processes see."""
        self.token = uuid.uuid4().hex[:12]
        self.took_over = False
        """Whether the previous holder did not release the lease."""
        self._folder = folder
        self._name = name
        self._holder = holder
        self._number = 0
        self._descriptor = -1
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat_until_ended, daemon=True)

    @contextlib.contextmanager
    def hold(self, report_wait: Callable[[str], None]) -> Iterator[Lease]:
        """Wait for the lease and release it at the end; `report_wait` gets the holder's name."""
        last, silent, read_at = (0, b""), 0.0, time.monotonic()
        while not self._acquire(dead=last[0] if silent >= self.SILENT_SECONDS else 0):
            newest = self._newest_number()
            current, now = (newest, self._read(newest)), time.monotonic()
            # Time in which this process could not read shows nothing about the holder.
            is_unchanged = newest and current == last
            silent = silent + min(now - read_at, 2 * self.POLL_SECONDS) if is_unchanged else 0.0
            last, read_at = current, now
            if newest and silent < self.SILENT_SECONDS:
                report_wait(_holder_name(current[1]))
            if silent < self.SILENT_SECONDS:
                time.sleep(self.POLL_SECONDS)
        try:
            yield self
        finally:
            self.release()

    def try_acquire(self) -> bool:
        """Take the lease if it has no holder, without waiting."""
        return self._acquire(dead=0)

    def is_lost(self) -> bool:
        """Whether another process has taken the lease, because this one was silent for too long."""
        is_newest = self._newest_number() == self._number
        return not is_newest or self.token.encode() not in self._read(self._number)

    def release(self) -> None:
        """Give the lease up; the file of another holder stays."""
        self._ended.set()
        self._thread.join(self.BEAT_SECONDS)
        if not self.is_lost():
            self._path(self._number).unlink(missing_ok=True)
        if not self._thread.is_alive():  # else the volume hangs, and the descriptor is in use
            os.close(self._descriptor)

    def _acquire(self, dead: int) -> bool:
        """Create the newest file, if there is no other than that of the holder `dead`."""
        newest = self._newest_number()
        if newest and newest != dead:
            return False
        number, path = newest + 1, self._path(newest + 1)
        try:
            self._descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        self._number, self.took_over = number, newest > 0
        try:
            self._write(0)
            newest = self._newest_number()
        finally:
            if newest != number:  # the volume is full, or another file is newer
                os.close(self._descriptor)
                path.unlink(missing_ok=True)
        if newest != number:
            return False
        for older in range(max(1, number - 8), number):
            self._path(older).unlink(missing_ok=True)
        self._thread.start()
        return True

    def _beat_until_ended(self) -> None:
        beat = 0
        while not self._ended.wait(self.BEAT_SECONDS):
            beat += 1
            # A volume that fails now may answer at the next beat.
            with contextlib.suppress(OSError):
                self._write(beat)

    def _write(self, beat: int) -> None:
        # Through the descriptor: a holder that lost the lease writes to a file without a name.
        content = {"holder": self._holder, "token": self.token, "beat": f"{beat:09d}"}
        os.pwrite(self._descriptor, json.dumps(content).encode(), 0)
        os.fsync(self._descriptor)

    def _newest_number(self) -> int:
        found = (_FILE_NAME.fullmatch(path.name) for path in self._folder.glob(f"{LEASE_PREFIX}*"))
        return max((int(m[2]) for m in found if m and m[1] == self._name), default=0)

    def _read(self, number: int) -> bytes:
        try:
            return self._path(number).read_bytes()
        except OSError:  # its holder has just removed it
            return b""

    def _path(self, number: int) -> Path:
        return self._folder / f"{LEASE_PREFIX}{self._name}-{number}"


def _holder_name(content: bytes) -> str:
    try:
        return str(json.loads(content)["holder"])
    except (ValueError, KeyError, TypeError):
        return "another job"
