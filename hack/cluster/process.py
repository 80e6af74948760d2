"""Programs and waiting: run a command with a readable error, wait on a condition with a deadline.

No command line ever passes through a shell with text from a user in it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from hack.cluster.errors import ClusterError

T = TypeVar("T")


def run(
    argv: Sequence[str | Path],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
) -> str:
    """Run a command and return what it printed; ClusterError with its stderr if it fails."""
    words = [str(a) for a in argv]
    try:
        done = subprocess.run(
            words, input=stdin, env=env, cwd=cwd, timeout=timeout, text=True, capture_output=True
        )
    except FileNotFoundError:
        hint = "try `python3 -m hack.cluster prerequisites`"
        raise ClusterError(f"{words[0]} is not installed: {hint}") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{' '.join(words[:6])} did not end within {timeout} s") from None
    if done.returncode != 0:
        tail = (done.stderr or done.stdout).strip()[-2000:]
        raise ClusterError(f"{' '.join(words[:8])} failed with status {done.returncode}: {tail}")
    return done.stdout


def succeeds(argv: Sequence[str | Path]) -> bool:
    """Whether a command exists and ends with status 0; its output is dropped."""
    try:
        return subprocess.run([str(a) for a in argv], capture_output=True).returncode == 0
    except OSError:
        return False


def wait_for(condition: Callable[[], T], seconds: float, what: str, interval: float = 0.05) -> T:
    """Poll `condition` until it is true and return its value; ClusterError if it is late."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise ClusterError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(interval)


def read_text(path: Path | str) -> str:
    """The text of a file, or nothing where it cannot be read (a process that has just ended)."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


class Steps:
    """Prints what is being done and how long it took, for a person who waits."""

    def __init__(self) -> None:
        self.began = self.last = time.monotonic()

    def done(self, what: str) -> None:
        """Say that `what` is done: time since the last step, and since the beginning."""
        now = time.monotonic()
        print(f"  {what:<58} {now - self.last:6.1f} s  ({now - self.began:.1f} s)", flush=True)
        self.last = now


def warn(text: str) -> None:
    """One line for people, on stderr."""
    print(text, file=sys.stderr, flush=True)
