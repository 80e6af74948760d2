"""kubectl, as a person would type it, with the answer as data."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from hack.cluster.kubectl import without_proxies


class KubectlError(RuntimeError):
    """kubectl failed; the message is its standard error."""


class Kubectl:
    """Runs one kubectl against one kubeconfig, in one namespace by default."""

    def __init__(self, program: Path, kubeconfig: Path, namespace: str = "default") -> None:
        self.program = program
        self.kubeconfig = kubeconfig
        self.namespace = namespace

    def command(self, *words: str) -> list[str]:
        """The command line for these words."""
        scope = ["--kubeconfig", str(self.kubeconfig), "--namespace", self.namespace]
        return [str(self.program), *scope, *words]

    def run(self, *words: str, stdin: str | None = None, timeout: float = 60) -> str:
        """Standard output; raises KubectlError with standard error when it fails."""
        try:
            done = subprocess.run(
                self.command(*words),
                input=stdin,
                env=without_proxies(),
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise KubectlError(f"kubectl {words[0]} did not end within {timeout:.0f} s") from None
        if done.returncode != 0:
            raise KubectlError(done.stderr.strip() or f"kubectl {words[0]} failed")
        return done.stdout

    def json(self, *words: str) -> Any:
        """The answer of `kubectl WORDS -o json`."""
        return json.loads(self.run(*words, "-o", "json"))

    def apply(self, *manifests: dict[str, Any]) -> None:
        """Server-side apply of manifests that are made here."""
        items = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self.run("apply", "--server-side", "-f", "-", stdin=json.dumps(items))
