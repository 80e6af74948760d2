"""Progress of a download, read from the disk, so that it is measured alike for every source."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

ProgressCallback = Callable[[str, int, int | None], None]
"""Called with a message, the items done (of a download: percent), and the items in all."""


class DownloadProgress:
    """Reports the downloaded bytes in `folder` twice a second, while it is entered."""

    INTERVAL_SECONDS = 0.5

    def __init__(self, folder: Path, total: int, report_progress: ProgressCallback) -> None:
        self._folder = folder
        self._total = total
        self._report_progress = report_progress
        self._done = threading.Event()
        self._thread = threading.Thread(
            target=self._report_until_done, name="download progress", daemon=True
        )
        self._bytes_before = 0

    def __enter__(self) -> DownloadProgress:
        self._bytes_before = folder_bytes(self._folder)
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

    def _report_until_done(self) -> None:
        while True:
            done = min(max(0, folder_bytes(self._folder) - self._bytes_before), self._total)
            percent = 100 * done // max(1, self._total)
            message = f"downloading {format_progress(done, self._total)}"
            self._report_progress(message, percent, 100)
            if self._done.wait(self.INTERVAL_SECONDS):
                return


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder, partial ones included."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except FileNotFoundError:  # renamed during the walk
            continue
    return total


def format_progress(done: int, total: int) -> str:
    """Both figures in the unit that suits the larger, such as `1.2/3.4 GB`."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if total >= size:
            return f"{done / size:.1f}/{total / size:.1f} {unit}"
    return f"{done}/{total} bytes"
