"""kubectl as cluster administrator: the one way in which these tools talk to the cluster's API."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hack.cluster.binaries import program
from hack.cluster.errors import ClusterError
from hack.cluster.paths import KUBECONFIG
from hack.cluster.process import run


def kubectl(*words: str | Path, stdin: str | None = None, timeout: float = 60) -> str:
    """Run kubectl against this checkout's cluster and return what it printed."""
    if not KUBECONFIG.exists():
        raise ClusterError("no cluster is up: `python3 -m hack.cluster up`")
    argv = [_binary(), "--kubeconfig", KUBECONFIG, *words]
    return run(argv, stdin=stdin, env=without_proxies(), timeout=timeout)


def without_proxies() -> dict[str, str]:
    """The environment for every client of the cluster.

    Its addresses are private to this machine: a proxy would only be in the way.
    """
    proxies = ("http_proxy", "https_proxy", "all_proxy")
    return {k: v for k, v in os.environ.items() if k.lower() not in proxies}


def answers(*words: str, wanted: str | None = None) -> bool:
    """Whether kubectl succeeds, and prints exactly `wanted` where that is given."""
    try:
        printed = kubectl(*words, timeout=10)
    except ClusterError:
        return False
    return bool(printed.strip()) if wanted is None else printed.strip() == wanted


def get(*words: str) -> dict[str, Any]:
    """`kubectl get ... -o json`, parsed."""
    parsed: dict[str, Any] = json.loads(kubectl("get", *words, "-o", "json"))
    return parsed


def apply(objects: Iterable[dict[str, Any]]) -> None:
    """Server-side apply of objects."""
    items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    flags = ["--server-side", "--force-conflicts", "--field-manager=hack-cluster", "-f", "-"]
    kubectl("apply", *flags, stdin=json.dumps(items))


def ready_nodes() -> list[str]:
    """The names of the nodes that are Ready; empty when the API does not answer."""
    path = (
        '{range .items[*]}{.metadata.name} {.status.conditions[?(@.type=="Ready")].status}{"\\n"}'
    )
    try:
        printed = kubectl("get", "nodes", "-o", f"jsonpath={path}{{end}}", timeout=10)
    except ClusterError:
        return []
    rows = (line.split() for line in printed.splitlines())
    return [row[0] for row in rows if row[1:] == ["True"]]


def _binary() -> str | Path:
    # Only users of kind without Go need the one that is installed.
    installed = shutil.which("kubectl")
    return program("kubectl") if shutil.which("go") or not installed else installed
