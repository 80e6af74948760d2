"""What the cluster needs from the distribution, installed by apt where it is missing.

Only looked at, in milliseconds, when all is there. Packages must not start their services: the
nodes run containerd themselves, and a second one on the host would only be in the way.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from hack.cluster.errors import ClusterError
from hack.cluster.process import Steps, run

# Package -> a file that it brings.
PACKAGES = {
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
    "mmdebstrap": "/usr/bin/mmdebstrap",
    "buildah": "/usr/bin/buildah",
    "libnuma1": "/usr/lib/*/libnuma.so.1",
}
_POLICY = Path("/usr/sbin/policy-rc.d")


def missing() -> list[str]:
    """The packages whose files are not there."""
    return [name for name, path in PACKAGES.items() if not any(Path("/").glob(path.lstrip("/")))]


def install() -> None:
    """Install what is missing; ClusterError where that is not possible."""
    wanted = missing()
    if not wanted:
        return
    names = " ".join(wanted)
    if not shutil.which("apt-get"):
        raise ClusterError(f"this needs Debian or Ubuntu, or what these packages bring: {names}")
    steps = Steps()
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    quiet = not _POLICY.exists()
    if quiet:  # the documented way to keep packages from starting services
        _POLICY.write_text("#!/bin/sh\nexit 101\n")
        _POLICY.chmod(0o755)
    try:
        run(["apt-get", "update", "-q"], env=env)
        run(["apt-get", "install", "-q", "-y", "--no-install-recommends", *wanted], env=env)
    finally:
        if quiet:
            _POLICY.unlink(missing_ok=True)
    steps.done(f"installed {names}")
    if wanted := missing():
        raise ClusterError(
            f"apt installed the packages, yet files of {' '.join(wanted)} are missing"
        )
