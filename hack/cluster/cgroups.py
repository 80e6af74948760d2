"""Control groups: each node gets a root of its own, in version 1 and version 2 of the API.

Two kubelets on one kernel must not share a root, or each would remove the other's pods as
leftovers. A frozen root is a hung node: daemons and pods stop alike, and nothing of it answers.
"""

from __future__ import annotations

import time
from pathlib import Path

from hack.cluster.errors import ClusterError

ROOT = Path("/sys/fs/cgroup")
PREFIX = "lc"
_REMOVAL_SECONDS = 2.0


def unified() -> bool:
    """Whether this computer uses version 2 (one tree) for its controllers."""
    return (ROOT / "cgroup.controllers").exists()


def _hierarchies() -> list[Path]:
    if unified():
        return [ROOT]
    return [p for p in sorted(ROOT.iterdir()) if p.is_dir() and not p.is_symlink()]


def daemons_file(node: str) -> Path:
    """Where a daemon of the node writes its process number to join the node."""
    if unified():  # a group that passes controllers on may not hold processes itself
        return ROOT / PREFIX / node / "daemons" / "cgroup.procs"
    return ROOT / "freezer" / PREFIX / node / "cgroup.procs"


def create(node: str) -> None:
    """Make the root of a node in every hierarchy."""
    if unified():
        _create_unified(node)
        return
    for hierarchy in _hierarchies():
        if hierarchy.name == "unified":  # has no controller here; runc creates what it needs
            continue
        for group in (hierarchy / PREFIX, hierarchy / PREFIX / node):
            group.mkdir(exist_ok=True)
            if hierarchy.name == "cpuset":  # empty in a new group, and then no process may join
                for name in ("cpuset.cpus", "cpuset.mems"):
                    if not (group / name).read_text().strip():
                        (group / name).write_text((group.parent / name).read_text())


def _create_unified(node: str) -> None:
    for group in (ROOT, ROOT / PREFIX, ROOT / PREFIX / node):
        group.mkdir(exist_ok=True)
        controllers = (group / "cgroup.controllers").read_text().split()
        (group / "cgroup.subtree_control").write_text(" ".join(f"+{c}" for c in controllers))
    (ROOT / PREFIX / node / "daemons").mkdir(exist_ok=True)


def freeze(node: str, frozen: bool) -> None:
    """Stop or continue every process of a node, pods included."""
    if unified():
        file, words = ROOT / PREFIX / node / "cgroup.freeze", ("0", "1")
    else:
        file, words = ROOT / "freezer" / PREFIX / node / "freezer.state", ("THAWED", "FROZEN")
    try:
        file.write_text(words[frozen])
    except FileNotFoundError:
        raise ClusterError(
            f"{node} is not running, so there is nothing to freeze or thaw"
        ) from None


def remove(node: str = "") -> list[Path]:
    """Remove the groups of a node, or of all; returns those that would not go.

    Also after a power failure: stale groups of dead pods cost the next kubelet seconds each.
    """
    left = []
    for hierarchy in _hierarchies():
        top = hierarchy / PREFIX / node
        groups = sorted(top.rglob("*/"), key=lambda p: len(p.parts), reverse=True)
        for group in [*groups, top]:
            if group.is_dir() and not _remove_one(group):
                left.append(group)
    return left


def _remove_one(group: Path) -> bool:
    deadline = time.monotonic() + _REMOVAL_SECONDS
    while True:
        try:
            group.rmdir()
        except FileNotFoundError:
            return True
        except OSError:  # a killed process leaves its group a little later
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        else:
            return True
