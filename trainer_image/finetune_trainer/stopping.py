"""SIGTERM, noticed by a second thread wherever the main thread stands.

Python runs a signal's function in the main thread and between two of its own steps. A main thread
that waits inside a library, for a download, a disk or other ranks, would not get there within the
time that a pod is given. The kernel's notice of the signal is written to a pipe at once, and a
thread reads it there. What is under way needs no unwinding: everything that a stage leaves must
stand a SIGKILL anyway.
"""

import os
import signal
import threading
from collections.abc import Callable


class Stop:
    """Whether this process was asked to stop."""

    def __init__(self, leave: Callable[[], None] | None = None) -> None:
        """Listen from now on, in the main thread; `leave` is called by a stop, in any thread."""
        self.asked = False
        self._leave = leave
        self._lock = threading.RLock()
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.signal(signal.SIGTERM, lambda *_: self._act())
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), name="stop", daemon=True).start()

    def at_boundary(self) -> bool:
        """Whether to stop; from the first such question on, a stop waits for the next one."""
        with self._lock:
            self._leave = None
        return self.asked

    def _watch(self, reader: int) -> None:
        while told := os.read(reader, 1):
            # Other signals that have a function in Python come here too.
            if told[0] == signal.SIGTERM:
                self._act()

    def _act(self) -> None:
        self.asked = True
        with self._lock:
            if self._leave:
                self._leave()
