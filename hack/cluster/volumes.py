"""Shared volumes: directories that pods of both nodes see, a stand-in for NFS or EFS.

Twenty of them wait for claims. A volume whose claim was deleted keeps its data until `offer` is
called again (`python3 -m hack.cluster volumes`), which empties it and makes it available.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from hack.cluster import objects
from hack.cluster.errors import ClusterError
from hack.cluster.kubectl import apply, get, kubectl
from hack.cluster.paths import VOLUMES
from hack.cluster.process import wait_for

COUNT = 20


def offer(seen_by_nodes: Path) -> int:
    """Make every shared volume exist; empty the released ones. Returns how many are available.

    `seen_by_nodes` is where the nodes see the folder VOLUMES.
    """
    known = {v["metadata"]["name"]: v for v in get("pv")["items"]}
    wanted = [objects.storage_class()]
    for number in range(1, COUNT + 1):
        name = f"shared-{number:02}"
        if name not in known:
            _open_directory(VOLUMES / name)
            wanted.append(objects.volume(name, str(seen_by_nodes / name)))
        elif known[name]["status"]["phase"] == "Released":
            shutil.rmtree(VOLUMES / name)
            _open_directory(VOLUMES / name)
            free = [{"op": "remove", "path": "/spec/claimRef"}]
            kubectl("patch", "pv", name, "--type=json", f"--patch={json.dumps(free)}")
    apply(wanted)
    return sum(v["status"].get("phase") != "Bound" for v in get("pv")["items"])


def make_volume(
    name: str, namespace: str, claim: str, seen_by_nodes: Path, path: Path | None = None
) -> Path:
    """Offer a directory to pods as the claim `namespace/claim`; returns the directory.

    Without `path` it is a new one, in VOLUMES. Make it readable for the pods' user before they
    start.
    """
    if path is None:
        path = VOLUMES / name
        _open_directory(path)
    if path.is_relative_to(VOLUMES):
        target = seen_by_nodes / path.relative_to(VOLUMES)
    elif seen_by_nodes == VOLUMES:  # the nodes share this computer's folders
        target = path.resolve(strict=True)
    else:
        raise ClusterError(f"the nodes cannot see {path}: place the files below {VOLUMES}")
    volume = objects.volume(name, str(target), (namespace, claim))
    apply([volume])
    # A claim that comes before its volume is noticed waits for the controller's next round, 15 s.
    wait_for(lambda: bool(get("pv", name)["status"].get("phase")), 30, f"the volume {name}")
    apply([objects.claim(claim, namespace, name)])

    def bound() -> bool:
        return bool(get("pvc", claim, "-n", namespace)["status"].get("phase") == "Bound")

    wait_for(bound, 30, f"the claim {namespace}/{claim} to be bound")
    return path


def _open_directory(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o777)  # hostPath ignores fsGroup, and pods run as an unprivileged user
