"""Asks a served endpoint over `kubectl port-forward`, as a developer at a desk would."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from typing import Any

from hack.cluster.kubectl import without_proxies
from hack.demo.kubectl import Kubectl, KubectlError

# The address is this computer's own: no proxy, regardless of the environment.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+)")


@contextlib.contextmanager
def forwarded(kubectl: Kubectl, service: str) -> Iterator[str]:
    """Base URL of port 80 of a service while the context lasts."""
    words = kubectl.command("port-forward", f"service/{service}", ":80", "--address", "127.0.0.1")
    with subprocess.Popen(
        words,
        env=without_proxies(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = FORWARDING.search(line)
            if not found:
                raise KubectlError(f"kubectl port-forward service/{service} said: {line.strip()}")
            yield f"http://127.0.0.1:{found[1]}"
        finally:
            process.terminate()


def chat(url: str, model: str, messages: list[dict[str, Any]], max_tokens: int) -> str:
    """The greedy answer to a conversation."""
    body = {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with OPENER.open(request, timeout=300) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])
