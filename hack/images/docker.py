"""Build Dockerfiles and start their images where a Docker engine answers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hack.images.layers import CHECKOUT

# The same strictness as hack.images.buildah gives a container.
STRICT = ("--read-only", "--tmpfs=/tmp", "--network=none", "--cap-drop=ALL")


def answers() -> bool:
    """Whether a Docker engine answers."""
    if not shutil.which("docker"):
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


def build(dockerfile: Path, tag: str, target: str = "") -> None:
    """Build `dockerfile`, or its stage `target`, from the checkout as `tag`."""
    command = ["docker", "build", "--file", str(dockerfile), "--tag", tag]
    command += [f"--target={target}"] if target else []
    command.append(str(CHECKOUT))
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise SystemExit(f"docker could not build {dockerfile.relative_to(CHECKOUT)}; see above")


def start(tag: str, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run `command`, not the image's own, in a container of `tag` and return what it printed."""
    own = f"--entrypoint={command[0]}"
    argv = ["docker", "run", "--rm", *STRICT, own, tag, *command[1:]]
    return subprocess.run(argv, capture_output=True, text=True, check=False)
