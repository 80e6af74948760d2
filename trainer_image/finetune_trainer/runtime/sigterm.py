"""SIGTERM as a stop request, which a second thread notices wherever the main thread is.

Python runs a signal's handler in the main thread, between two bytecodes. A main thread that waits
inside a library, for a download, a disk or other ranks, might not get there within the pod's grace
period. The signal number is written to a wake-up pipe at once, and a thread reads it from there.
The thread may end the process without any unwinding: everything that a stage leaves on a volume
must survive a SIGKILL anyway.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Protocol


def block_sigterm() -> None:
    """Keep SIGTERM pending until `Stop` exists.

    The kernel drops a signal to the first process of a pod that has no handler for it, so a stage
    that is stopped while it imports its libraries would run on.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


class Preempted(BaseException):
    """A stop was requested; the main thread has a few seconds to clean up.

    Not an Exception: it may be raised at any line, and an `except Exception` in a library, or one
    of ours that reports a broken tokenizer, must not take it for a fault of the input.
    """


class StopRequest(Protocol):
    """What the training loop needs of a `Stop`."""

    @property
    def requested(self) -> bool:
        """Whether this process has been asked to stop."""

    def defer_to_boundary(self) -> None:
        """Let a stop wait until the main thread reads `requested`."""


class Stop:
    """The stop request of this process, made by SIGTERM."""

    def __init__(
        self, exit_now: Callable[[], None] | None = None, unwind_seconds: float = 0.0
    ) -> None:
        """Listen from now on; must be called in the main thread.

        `exit_now` is called in another thread when a stop is requested, `unwind_seconds` later.
        With `unwind_seconds` above 0 the main thread gets Preempted at once, so that it can clean
        up until then.
        """
        self._requested = False
        self._exit_now, self._unwind_seconds = exit_now, unwind_seconds
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.signal(signal.SIGTERM, lambda *_: self._interrupt())
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        # A stage script may have blocked it until now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        threading.Thread(target=self._watch, args=(reader,), name="stop", daemon=True).start()

    @property
    def requested(self) -> bool:
        """Whether this process has been asked to stop."""
        return self._requested

    def defer_to_boundary(self) -> None:
        """Never call `exit_now` from here on: the main thread reads `requested` at a boundary."""
        self._exit_now = None

    def _interrupt(self) -> None:
        # Only the first signal interrupts: a second one must not break off the cleanup.
        is_first, self._requested = not self._requested, True
        if self._exit_now and self._unwind_seconds and is_first:
            raise Preempted

    def _watch(self, reader: int) -> None:
        while received := os.read(reader, 1):
            # The pipe also carries other signals that have a Python handler.
            if received[0] == signal.SIGTERM:
                if self._unwind_seconds:
                    time.sleep(self._unwind_seconds)
                else:
                    self._requested = True
                if exit_now := self._exit_now:
                    exit_now()
