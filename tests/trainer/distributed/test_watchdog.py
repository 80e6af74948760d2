"""Which ranks the first process of a pod gives up, and when its liveness probe fails."""

from __future__ import annotations

import os
import signal
import subprocess
import urllib.error
import urllib.request
from typing import Any

import pytest
from finetune_api.protocol import COLLECTIVE_TIMEOUT_ENV
from finetune_trainer.distributed.watchdog import Watchdog
from finetune_trainer.runtime.telemetry import Report, serve_telemetry

LIMIT = 1000


class Pod:
    """A watchdog, its clock and the last reports of two ranks."""

    def __init__(self) -> None:
        self.now = 0.0
        self.watchdog = Watchdog(lambda: self.now)
        own = {"pid": os.getpid(), "host": "pod-0", "step": 7, "updated_at": 0.0}
        self.ranks: list[dict[str, Any]] = [{**own, "rank": rank} for rank in (0, 1)]

    def pass_time(self, seconds: float, beating: tuple[int, ...], interval: float = 1.0) -> None:
        """Let time go by, in which the watchdog is updated every `interval` seconds."""
        end = self.now + seconds
        while self.now < end:
            self.now += interval
            for rank in beating:
                self.ranks[rank]["beat_at"] = self.now
            self.watchdog.update(self.ranks)

    def to_kill(self, is_stop_requested: bool = False) -> list[int]:
        return [rank.rank for rank in self.watchdog.ranks_to_kill(is_stop_requested)]


@pytest.fixture
def pod(monkeypatch: pytest.MonkeyPatch) -> Pod:
    monkeypatch.setenv(COLLECTIVE_TIMEOUT_ENV, str(LIMIT))
    return Pod()


def test_a_rank_whose_beats_end_is_named_and_then_killed(pod: Pod) -> None:
    pod.pass_time(10, beating=(0, 1))
    pod.pass_time(150, beating=(0,))
    assert [rank.rank for rank in pod.watchdog.silent_ranks()] == [1]
    assert pod.to_kill() == []
    pod.pass_time(300, beating=(0,))
    assert pod.to_kill() == [1]
    assert pod.watchdog.liveness_error() is None


def test_a_rank_that_has_not_joined_yet_does_not_count_as_silent(pod: Pod) -> None:
    pod.pass_time(10 * LIMIT, beating=())
    assert pod.to_kill() == []
    assert pod.watchdog.liveness_error() is None


def test_no_rank_is_blamed_after_a_pause_of_the_pod(pod: Pod) -> None:
    pod.pass_time(10, beating=(0, 1))
    pod.pass_time(LIMIT, beating=(), interval=LIMIT)
    assert pod.to_kill() == []
    assert pod.watchdog.silent_ranks() == []


def test_a_rank_that_has_ended_is_not_silent(pod: Pod) -> None:
    pod.pass_time(10, beating=(0, 1))
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    pod.ranks[1]["pid"] = child
    pod.pass_time(LIMIT, beating=(0,))
    assert pod.to_kill() == []


def test_a_rank_that_a_signal_has_stopped_is_killed_as_soon_as_it_is_named(pod: Pod) -> None:
    pod.pass_time(10, beating=(0, 1))
    with subprocess.Popen(["sleep", "300"]) as child:
        try:
            child.send_signal(signal.SIGSTOP)
            os.waitpid(child.pid, os.WUNTRACED)
            pod.ranks[1]["pid"] = child.pid
            pod.pass_time(90, beating=(0,))
            assert pod.to_kill() == []
            pod.pass_time(60, beating=(0,))
            assert pod.to_kill() == [1]
            child.send_signal(signal.SIGCONT)
            os.waitpid(child.pid, os.WCONTINUED)
            pod.pass_time(1, beating=(0,))
            assert pod.to_kill() == []
        finally:
            child.kill()


def test_a_pod_that_must_stop_kills_a_silent_rank_sooner(pod: Pod) -> None:
    pod.pass_time(10, beating=(0, 1))
    pod.pass_time(150, beating=(0,))
    assert pod.to_kill(is_stop_requested=True) == [1]


def test_healthz_fails_when_a_silent_rank_cannot_be_killed(pod: Pod) -> None:
    pod.pass_time(10, beating=(0, 1))
    pod.pass_time(0.6 * LIMIT, beating=(0,))
    assert healthz(pod) == (503, "rank 1 on host pod-0 has been silent for 600 s\n")


def test_healthz_fails_when_the_first_process_does_not_move(pod: Pod) -> None:
    pod.pass_time(10, beating=(0, 1))
    assert healthz(pod) == (200, "ok\n")
    pod.now += 200
    assert healthz(pod) == (503, "the first process of this pod has not moved for 200 s\n")


def healthz(pod: Pod) -> tuple[int, str]:
    """Status and text of the liveness probe."""
    report = Report("train", 1)
    report.set_liveness_check(pod.watchdog.liveness_error)
    server = serve_telemetry(report)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/healthz") as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    finally:
        server.shutdown()
        server.server_close()
