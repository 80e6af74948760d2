"""A stop request: read without an effect, and deferred to the next boundary on demand."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def run(body: str) -> str:
    """Output of a process that has imported Stop and runs `body`."""
    script = textwrap.dedent(
        """
        import os, signal, time
        from finetune_trainer.runtime.sigterm import Stop, block_sigterm

        def exit_now():
            print("exits at once", flush=True)
            os._exit(76)

        def wait_for(stop):
            while not stop.requested:
                time.sleep(0.01)
        """
    )
    return subprocess.run(
        [sys.executable, "-c", script + textwrap.dedent(body)],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    ).stdout


def test_a_stop_is_requested_by_sigterm() -> None:
    out = run(
        """
        stop = Stop()
        print(stop.requested)
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(stop)
        print(stop.requested)
        """
    )
    assert out == "False\nTrue\n"


def test_reading_the_request_does_not_defer_the_exit() -> None:
    out = run(
        """
        stop = Stop(exit_now)
        assert not stop.requested and not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        """
    )
    assert out == "exits at once\n"


def test_a_deferred_stop_waits_until_the_main_thread_reads_it() -> None:
    out = run(
        """
        stop = Stop(exit_now)
        stop.defer_to_boundary()
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(stop)
        print("a checkpoint is saved")
        """
    )
    assert out == "a checkpoint is saved\n"


def test_a_signal_during_the_imports_is_delivered_to_the_stop() -> None:
    out = run(
        """
        block_sigterm()
        os.kill(os.getpid(), signal.SIGTERM)
        stop = Stop()
        wait_for(stop)
        print(stop.requested)
        """
    )
    assert out == "True\n"
