"""What the tools of `hack` need from the distribution, installed by apt where it is missing.

Only looked at, in milliseconds, when all is there. Packages must not start their services: the
nodes run containerd themselves, and a second one on the host would only be in the way.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from hack.cluster.errors import ClusterError
from hack.cluster.paths import cache_dir, locked
from hack.cluster.process import read_text, run, warn

# Package -> a file that it brings.
CLUSTER = {
    "containerd": "/usr/bin/containerd",
    "runc": "/usr/sbin/runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "iptables": "/usr/sbin/iptables",
    "conntrack": "/usr/sbin/conntrack",
    "socat": "/usr/bin/socat",
    "ethtool": "/usr/sbin/ethtool",
    "iproute2": "/usr/sbin/ip",
    "util-linux": "/usr/bin/nsenter",
    "openssl": "/usr/bin/openssl",
}
BUILD = {
    "buildah": "/usr/bin/buildah",
    "mmdebstrap": "/usr/bin/mmdebstrap",
    "gcc": "/usr/bin/gcc",
    "libc6-dev": "/usr/include/stdio.h",  # gcc only recommends it
    "binutils": "/usr/bin/readelf",
    "python3": "/usr/bin/python3",
    # Debian keeps what `python3 -m venv` needs in a package of its own.
    "python3-venv": "/usr/lib/python3*/ensurepip/__init__.py",
}
# Only a cluster that enforces NetworkPolicies needs it.
POLICIES = {"ipset": "/usr/sbin/ipset"}
PACKAGES = CLUSTER | BUILD | POLICIES
_POLICY = Path("/usr/sbin/policy-rc.d")
_NO_SERVICES = "#!/bin/sh\n# written by finetune-operator's hack.cluster\nexit 101\n"


def missing(names: Iterable[str]) -> list[str]:
    """Those of the packages `names` whose files are not there."""
    return [name for name in names if not any(Path("/").glob(PACKAGES[name].lstrip("/")))]


def install(names: Iterable[str] = (*CLUSTER, *BUILD)) -> None:
    """Install what is missing of `names`; ClusterError where that is not possible."""
    wanted = missing(names)
    if not wanted:
        return
    listed = " ".join(wanted)
    if not shutil.which("apt-get"):
        raise ClusterError(f"this needs Debian, or what its packages bring: {listed}")
    if os.geteuid() != 0:
        raise ClusterError(f"these packages are missing: as root, `apt-get install {listed}`")
    warn(f"installing {listed} ...")
    with locked(cache_dir() / "locks" / "apt"), _without_services():
        apt("update")
        apt("install", "--yes", "--no-install-recommends", *wanted)
    if wanted := missing(wanted):
        raise ClusterError(
            f"apt installed the packages, yet files of {' '.join(wanted)} are missing"
        )


def apt(*words: str, folder: Path | None = None) -> None:
    """Run apt-get without questions, in `folder`; ClusterError with its message if it fails."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    run(["apt-get", "-q", "-o", "DPkg::Lock::Timeout=600", *words], env=env, cwd=folder)


@contextlib.contextmanager
def _without_services() -> Iterator[None]:
    """Keep packages from starting services, in the documented way."""
    if read_text(_POLICY) not in ("", _NO_SERVICES):  # not one that a crash of ours left behind
        yield
        return
    _POLICY.write_text(_NO_SERVICES)
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink(missing_ok=True)
