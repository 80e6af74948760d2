"""Real operator processes with the tiny controller, for tests that stop, freeze or kill them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

from tests.api.client import Api, ApiError

ROOT = Path(__file__).resolve().parents[3]


def until(what: str, condition: Callable[[], bool], seconds: float = 60) -> float:
    """Seconds until the condition holds; the test fails after the deadline."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - started


class Operator:
    """One operator process that serves one namespace."""

    def __init__(self, kubeconfig: Path, namespace: str, log: Path, pod: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        flags = {
            "trainer-image": "trainer",
            "serving-image": "vllm",
            "kubeconfig": kubeconfig,
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

    def has_logged(self, text: str) -> bool:
        assert self.process.poll() is None or text in self.log.read_text(), self.log.read_text()
        return text in self.log.read_text()

    def is_healthy(self) -> bool:
        return self._answers("healthz")

    def is_ready(self) -> bool:
        return self._answers("readyz")

    def _answers(self, path: str) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


Start = Callable[[str], Operator]


def holder(api: Api, namespace: str) -> str:
    try:
        spec = api.get("Lease", namespace, "finetune-operator")["spec"]
    except ApiError:
        return ""
    return str(spec.get("holderIdentity") or "").partition("_")[0]


def prepared(api: Api, namespace: str, name: str) -> bool:
    """Whether a status was written, which comes before the children."""
    return "phase" in api.get("FineTuneJob", namespace, name)["status"]
