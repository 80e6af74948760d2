"""Real operator processes: who leads, how they end, what a frozen one does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from hack.cluster.apiserver import ControlPlane
from tests.api.client import Api, ApiError
from tests.api.engine import toy

ROOT = Path(__file__).resolve().parents[3]


def until(what: str, condition: Callable[[], bool], seconds: float = 30) -> float:
    """Seconds until the condition holds; the test fails after the deadline."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - started


class Operator:
    """One operator process that serves one namespace."""

    def __init__(self, plane: ControlPlane, namespace: str, log: Path, pod: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        flags = {
            "trainer-image": "trainer",
            "serving-image": "vllm",
            "kubeconfig": plane.kubeconfig,
            "namespace": namespace,
            "health-port": self.port,
            "log-format": "text",
        }
        argv = [sys.executable, "-m", "tests.api.engine.toy"]
        argv += [f"--{flag}={value}" for flag, value in flags.items()]
        path = os.pathsep.join(str(each) for each in (ROOT, ROOT / "operator"))
        self.log = log / f"{pod}.log"
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *argv],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": path, "POD_NAME": pod},
                stdout=out,
                stderr=out,
            )

    def says(self, text: str) -> bool:
        assert self.process.poll() is None or text in self.log.read_text(), self.log.read_text()
        return text in self.log.read_text()

    def healthy(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


Start = Callable[[str], Operator]


@pytest.fixture
def start(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Start]:
    """Start an operator; it is killed with the test."""
    operators: list[Operator] = []

    def start(pod: str) -> Operator:
        operators.append(Operator(control_plane, namespace, tmp_path, pod))
        return operators[-1]

    yield start
    for each in operators:
        if each.process.poll() is None:
            each.process.kill()
        each.process.wait()


def holder(api: Api, namespace: str) -> str:
    try:
        spec = api.get("Lease", namespace, "finetune-operator")["spec"]
    except ApiError:
        return ""
    return str(spec.get("holderIdentity") or "").partition("_")[0]


def prepared(api: Api, namespace: str, name: str) -> bool:
    return "status" in api.get("FineTuneJob", namespace, name)


def test_a_standby_takes_over_within_ten_seconds_of_a_kill(
    start: Start, api: Api, namespace: str
) -> None:
    leader = start("pod-1")
    until("pod-1 works", lambda: leader.says("cache complete"))
    standby = start("pod-2")
    until("pod-2 answers", standby.healthy)
    assert holder(api, namespace) == "pod-1"

    leader.process.kill()
    api.create(toy.finetune_job(namespace, "a"))
    took = until("the standby prepares the job", lambda: prepared(api, namespace, "a"))

    assert holder(api, namespace) == "pod-2"
    print(f"\ntake-over after kill -9, until the next status write: {took:.1f} s")
    assert took <= 10


def test_a_stopped_leader_gives_the_lease_back_and_exits_with_zero(
    start: Start, api: Api, namespace: str
) -> None:
    leader = start("pod-1")
    until("pod-1 works", lambda: leader.says("cache complete"))
    standby = start("pod-2")
    until("pod-2 answers", standby.healthy)

    leader.process.terminate()
    assert leader.process.wait(timeout=20) == 0, leader.log.read_text()
    took = until("pod-2 leads", lambda: holder(api, namespace) == "pod-2")
    print(f"\ntake-over after SIGTERM: {took:.1f} s after the exit")
    assert took < 5
    assert "Traceback" not in leader.log.read_text()

    standby.process.send_signal(signal.SIGINT)
    assert standby.process.wait(timeout=20) == 0


def test_a_leader_that_was_frozen_exits_without_another_write(
    start: Start, api: Api, namespace: str
) -> None:
    leader = start("pod-1")
    until("pod-1 works", lambda: leader.says("cache complete"))
    leader.process.send_signal(signal.SIGSTOP)
    standby = start("pod-2")
    until("pod-2 leads", lambda: holder(api, namespace) == "pod-2")
    standby.process.send_signal(signal.SIGSTOP)  # so that whatever is written now is pod-1's
    api.create(toy.finetune_job(namespace, "a"))

    leader.process.send_signal(signal.SIGCONT)

    assert leader.process.wait(timeout=20) == 3
    assert "leadership lost" in leader.log.read_text()
    assert not prepared(api, namespace, "a")
    assert not api.list("Job", namespace)


def test_two_that_start_together_make_one_leader(start: Start, api: Api, namespace: str) -> None:
    both = [start("pod-1"), start("pod-2")]
    until("one leads", lambda: any(each.says("leading as") for each in both))
    until("both answer", lambda: all(each.healthy() for each in both))
    api.create(toy.finetune_job(namespace, "a"))
    until("the job is prepared", lambda: prepared(api, namespace, "a"))
    assert sum(each.says("leading as") for each in both) == 1
