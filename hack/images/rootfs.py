"""The base of every local image: a small Debian with Python, unpacked from Debian's own packages.

mmdebstrap makes it, so no registry of container images is needed. The product's Dockerfiles take
their base as an argument; the tests give them this one.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from hack.cluster.paths import cache_dir
from hack.cluster.prerequisites import install
from hack.images.cache import digest, made

SUITE = "bookworm"
# python3-venv brings pip for the Dockerfiles; vLLM needs libnuma1 to read the memory layout of the
# machine.
PACKAGES = ("python3", "python3-venv", "ca-certificates", "libnuma1", "netbase", "tzdata")
UNREAD = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
USER = "nonroot:x:65532:65532:nonroot:/tmp:/usr/sbin/nologin"
GROUP = "nonroot:x:65532:"


def rootfs() -> Path:
    """Tar file of the root filesystem."""
    name = digest(SUITE, *PACKAGES, *UNREAD, USER, GROUP)
    return made(cache_dir() / f"rootfs-{name}.tar", _build, "base of the images")


def _build(scratch: Path) -> None:
    install(["mmdebstrap"])
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--format=tar"]
    command.append(f"--include={','.join(PACKAGES)}")
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in UNREAD]
    command.append(f'--customize-hook=echo "{USER}" >> "$1/etc/passwd"')
    command.append(f'--customize-hook=echo "{GROUP}" >> "$1/etc/group"')
    command.append('--customize-hook=rm -rf "$1"/var/log/* "$1"/var/cache/apt/*')
    # A tar on stdout keeps the format independent of the scratch file's name.
    with scratch.open("wb") as target:
        subprocess.run([*command, SUITE, "-"], check=True, stdout=target)
