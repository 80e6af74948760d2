"""A machine: one set of PID, mount, network, host name and IPC namespaces of this computer.

Its init process is the only process recorded, together with its start time, so that a reused
process number is never signalled. Killing that init is a power failure: the kernel ends every
process of the machine, containers included, and drops its mounts, links and pod networks. Paths
inside a node are the stock ones (/var/lib/kubelet, ...), because what differs is mounted over
them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hack.cluster import cgroups
from hack.cluster.errors import ClusterError
from hack.cluster.layout import CONTROL_PLANE, LOGS, NODES, RUN
from hack.cluster.paths import put
from hack.cluster.process import read_text, run, wait_for

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
}
# Stock paths of a node that must be its own; these folders have to exist on this computer's root.
MOUNT_POINTS = ("var/lib/kubelet", "var/lib/containerd", "var/lib/cni", "etc/cni", "opt/cni")

_NODE_MOUNTS = """
mkdir -p /run/cg
mount --rbind /sys/fs/cgroup /run/cg
mount -t sysfs sysfs /sys
mount --rbind /run/cg /sys/fs/cgroup
for path in $3 var/log; do
  mkdir -p "$1/$path"
  mount --bind "$1/$path" "/$path"
done
mkdir -p /opt/cni/bin /etc/cni/net.d
mount --bind /usr/lib/cni /opt/cni/bin
mount --make-rshared /
"""
# $1 the machine's folder, $2 its name, $3 the mount points of a node (none for the control plane)
_INIT = f"""
set -e
ip link set lo up
hostname "$2"
mount -t tmpfs tmpfs /run
if [ -n "$3" ]; then {_NODE_MOUNTS} fi
touch "$1/booted"
set +e
trap : TERM HUP INT
while :; do sleep 86400 & wait; done
"""
# $1 log, then a command that outlives its caller; prints the number of its process
_DETACH = """
cd /
log=$1
shift
setsid "$@" </dev/null >>"$log" 2>&1 &
echo $!
"""
# $1 the cgroup to join (may be empty), $2 log, $3 file for the process number, then the command.
# The group must be joined by hand: entering namespaces leaves a process in the group of its
# caller.
_START = """
cd /
if [ -n "$1" ]; then echo 0 > "$1"; fi
log=$2 number=$3
shift 3
setsid "$@" </dev/null >>"$log" 2>&1 &
echo $! >"$number"
"""


@dataclass(frozen=True)
class Process:
    """A process of a machine: its number inside and outside, its program, its resident MiB."""

    inner: int
    outer: int
    program: str
    resident: int


class Machine:
    """One machine of the cluster, running or not."""

    def __init__(self, name: str) -> None:
        if name not in names():
            raise ClusterError(f"there is no machine {name!r}: it is one of {', '.join(names())}")
        self.name = name
        self.folder = RUN / name

    @property
    def pid(self) -> int | None:
        """The init process as this computer numbers it, or None when the machine is off."""
        words = read_text(self.folder / "init.pid").split()
        if len(words) != 2:
            return None
        pid = int(words[0])
        return pid if identity(pid) == words[1] else None

    def inside(self, *command: str | Path) -> list[str]:
        """The command line that runs `command` in all namespaces of this machine."""
        return self._enter("-m", "-n", "-p", "-u", "-i", "--", *command)

    def network(self, *command: str) -> list[str]:
        """The command line that runs `command` in the network of this machine only."""
        return self._enter("-n", "--", *command)

    def _enter(self, *words: str | Path) -> list[str]:
        pid = self.pid
        if pid is None:
            raise ClusterError(f"{self.name} is off: `python3 -m hack.cluster poweron {self.name}`")
        return ["nsenter", "-t", str(pid), *(str(w) for w in words)]

    def boot(self) -> None:
        """Make the namespaces and mounts; nothing of Kubernetes runs yet."""
        if self.pid is not None:
            return
        LOGS.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        booted = self.folder / "booted"
        booted.unlink(missing_ok=True)
        mounts = "" if self.name == CONTROL_PLANE else " ".join(MOUNT_POINTS)
        flags = ["-m", "-n", "-p", "-f", "-u", "-i", "--mount-proc", "--propagation", "private"]
        script = ["bash", "-c", _INIT, f"{self.name}-init", str(self.folder), self.name, mounts]
        log = LOGS / f"{self.name}-init.log"
        command = ["unshare", *flags, "--", *script]
        detached = ["bash", "-c", _DETACH, "boot", str(log), *command]
        outer = run(detached, env=ENVIRONMENT).strip()
        # unshare forks: its child is process 1 of the new namespaces.
        children = Path(f"/proc/{outer}/task/{outer}/children")
        pid = int(wait_for(lambda: read_text(children).split(), 10, f"the init of {self.name}")[0])
        put(self.folder / "init.pid", f"{pid} {identity(pid)}")
        wait_for(booted.exists, 20, f"the mounts of {self.name}, see {log}")

    def power_off(self) -> None:
        """End everything on this machine at once, as when its power fails; safe when it is off."""
        recorded = self.pid
        for pid in {*self._inits(), *([recorded] if recorded else [])}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            wait_for(functools.partial(_ended, pid), 60, f"the end of {self.name}")
        (self.folder / "init.pid").unlink(missing_ok=True)

    def _inits(self) -> list[int]:
        """Init processes of this very machine, also one whose number a crash kept from the file."""
        wanted = [f"{self.name}-init", str(self.folder), self.name]
        found = []
        for entry in Path("/proc").iterdir():
            words = read_text(entry / "cmdline").split("\0") if entry.name.isdigit() else []
            if words[0:2] == ["bash", "-c"] and words[3:6] == wanted:
                found.append(int(entry.name))
        return found

    def processes(self) -> list[Process]:
        """Every process in this machine's own PID namespace (the pods' are in theirs)."""
        pid = self.pid
        if pid is None:
            return []
        wanted = _namespace(Path(f"/proc/{pid}"))
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _namespace(entry) == wanted:
                status = read_text(entry / "status")
                inner = re.search(r"^NSpid:.*\s(\d+)$", status, re.MULTILINE)
                resident = re.search(r"^VmRSS:\s+(\d+)", status, re.MULTILINE)
                if inner:
                    mib = int(resident.group(1)) // 1024 if resident else 0
                    program = read_text(entry / "comm").strip()
                    found.append(Process(int(inner.group(1)), int(entry.name), program, mib))
        return sorted(found, key=lambda p: p.inner)

    def start(
        self, component: str, argv: Sequence[str | Path], env: Mapping[str, str] | None = None
    ) -> None:
        """Start a daemon in this machine; its output goes to the logs folder."""
        group = "" if self.name == CONTROL_PLANE else str(cgroups.daemons_file(self.name))
        number = self.folder / f"{component}.pid"
        words = ["bash", "-c", _START, "start", group, self.log(component), number, *argv]
        run(self.inside(*words), env={**ENVIRONMENT, **(env or {})})

    def stop(self, component: str) -> None:
        """Kill a daemon of this machine; nothing starts it again by itself."""
        number = read_text(self.folder / f"{component}.pid").strip()
        outer = [p.outer for p in self.processes() if str(p.inner) == number]
        if not outer:
            raise ClusterError(f"{component} is not running on {self.name}")
        os.kill(outer[0], signal.SIGKILL)

    def log(self, component: str) -> Path:
        """The file that takes what a daemon prints."""
        return LOGS / f"{self.name}-{component}.log"


def names() -> list[str]:
    """Every machine of the cluster, the control plane first."""
    return [CONTROL_PLANE, *NODES]


def identity(pid: int) -> str | None:
    """Distinguishes this process from a later one with the same PID: boot and start time."""
    stat = read_text(f"/proc/{pid}/stat")
    if not stat:
        return None
    boot = read_text("/proc/sys/kernel/random/boot_id").strip()
    return f"{boot}:{stat.rsplit(')', 1)[1].split()[19]}"


def _ended(pid: int) -> bool:
    stat = read_text(f"/proc/{pid}/stat")
    return not stat or stat.rsplit(")", 1)[1].split()[0] == "Z"


def _namespace(entry: Path) -> str:
    try:
        return str((entry / "ns/pid").readlink())
    except OSError:
        return ""
