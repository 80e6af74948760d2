"""SIGTERM, noticed by a second thread wherever the main thread stands.

Python runs a signal's function in the main thread and between two of its own steps. A main thread
that waits inside a library, for a download, a disk or other ranks, would not get there within the
time that a pod is given. The kernel's notice of the signal is written to a pipe at once, and a
thread reads it there. It may end the process without any unwinding: everything that a stage leaves
must stand a SIGKILL anyway.
"""

import os
import signal
import threading
import time
from collections.abc import Callable


def keep_back() -> None:
    """Keep SIGTERM until `Stop` listens: the first process of a pod would lose it, and go on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


class Preempted(BaseException):
    """This process was asked to stop, and its main thread may put things in order, but not long.

    Not an Exception: it may be raised at any line, and a library's `except Exception`, or ours
    that tells a broken tokenizer, must not take it for a fault of the input.
    """


class Stop:
    """Whether this process was asked to stop."""

    def __init__(self, leave: Callable[[], None] | None = None, unwind: float = 0.0) -> None:
        """Listen from now on, in the main thread; a stop calls `leave`, in another one.

        With `unwind` Preempted is raised in the main thread that many seconds before.
        """
        self.asked = False
        self._leave, self._unwind = leave, unwind
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.signal(signal.SIGTERM, lambda *_: self._interrupt())
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        # A stage may have kept it back until now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        threading.Thread(target=self._watch, args=(reader,), name="stop", daemon=True).start()

    def at_boundary(self) -> bool:
        """Whether to stop; from the first such question on, a stop waits for the next one."""
        self._leave = None
        return self.asked

    def _interrupt(self) -> None:
        # Once: what is put in order must not be interrupted again.
        again, self.asked = self.asked, True
        if self._leave and self._unwind and not again:
            raise Preempted

    def _watch(self, reader: int) -> None:
        while told := os.read(reader, 1):
            # Other signals that have a function in Python come here too.
            if told[0] == signal.SIGTERM:
                if self._unwind:
                    time.sleep(self._unwind)
                else:
                    self.asked = True
                if leave := self._leave:
                    leave()
