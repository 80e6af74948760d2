"""How far a download is, read from the disk, so that every kind of source is measured alike."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

Tell = Callable[[str, int, int | None], None]
"""Called with a message, the items (of a download: hundredths) done, and those in all."""


class Meter:
    """While entered, tells twice a second how many bytes of `folder` there are."""

    INTERVAL = 0.5

    def __init__(self, folder: Path, total: int, tell: Tell) -> None:
        self._folder = folder
        self._total = total
        self._tell = tell
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="meter", daemon=True)
        self._before = 0

    def __enter__(self) -> Meter:
        self._before = bytes_below(self._folder)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            done = min(max(0, bytes_below(self._folder) - self._before), self._total)
            percent = 100 * done // max(1, self._total)
            self._tell(f"downloading {in_units(done, self._total)}", percent, 100)
            if self._done.wait(self.INTERVAL):
                return


def bytes_below(folder: Path) -> int:
    """Bytes of all files below a folder, half-written ones included."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except FileNotFoundError:  # renamed while we looked
            continue
    return total


def in_units(done: int, total: int) -> str:
    """Both figures in the unit that suits the larger, such as `1.2/3.4 GB`."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if total >= size:
            return f"{done / size:.1f}/{total / size:.1f} {unit}"
    return f"{done}/{total} bytes"
