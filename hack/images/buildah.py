"""Build Dockerfiles and start their images on a machine without a container engine.

buildah reads the Dockerfile and keeps every step's result, so a change of our code repeats only the
last steps. It runs the steps in a chroot, which needs root but no daemon. runc then starts the
image the way a strict cluster would: read-only root, no capabilities, no network, user 65532.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from hack.cluster.paths import cache_dir
from hack.cluster.prerequisites import install
from hack.images.layers import CHECKOUT, base_layer

USER = 65532


def build(dockerfile: Path, tag: str) -> None:
    """Build `dockerfile` from the checkout as `tag`, on the base of the local images."""
    install(["buildah", "runc"])
    base = _base_image()
    options = ["--isolation", "chroot", "--layers", "--pull-never", "--format", "oci"]
    options += ["--build-arg", f"BASE_IMAGE={base}", *_index_settings()]
    _buildah("bud", *options, "--file", str(dockerfile), "--tag", tag, str(CHECKOUT))
    # What earlier builds left without a name; the steps of named images stay.
    _buildah("rmi", "--prune", "--force")


def start(tag: str, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run `command`, not the image's own, in a container of `tag` and return what it printed."""
    container = _buildah("from", "--pull-never", tag).strip()
    try:
        root = _buildah("mount", container).strip()
        image = json.loads(_buildah("inspect", "--type", "image", tag))["OCIv1"]["config"]
        with TemporaryDirectory(prefix="bundle-") as bundle:
            spec = _bundle(Path(root), image, command)
            (Path(bundle) / "config.json").write_text(json.dumps(spec))
            argv = ["runc", "--root", f"{bundle}/state", "run", "--bundle", bundle, container]
            return subprocess.run(argv, capture_output=True, text=True, check=False)
    finally:
        _buildah("rm", container)


def _buildah(*arguments: str) -> str:
    home = cache_dir() / "buildah"
    # buildah keeps the mounts of type cache below TMPDIR.
    scratch = home / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    storage = ["--root", str(home / "storage"), "--runroot", "/run/finetune-operator-buildah"]
    done = subprocess.run(
        ["buildah", *storage, *arguments],
        env={**os.environ, "TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        output = (done.stdout + done.stderr).strip()[-3000:]
        raise SystemExit(f"buildah {arguments[0]} failed:\n{output}")
    return done.stdout


def _base_image() -> str:
    """The base of the local images, in buildah's storage under its digest."""
    layer = base_layer()
    name = f"localhost/finetune-base:{layer.digest.removeprefix('sha256:')[:16]}"
    if name not in _buildah("images", "--format", "{{.Name}}:{{.Tag}}").split():
        container = _buildah("from", "scratch").strip()
        _buildah("add", "--quiet", container, str(layer.tar), "/")
        _buildah("commit", "--quiet", "--disable-compression", container, name)
        _buildah("rm", container)
    return name


def _index_settings() -> list[str]:
    """Let this machine's certificates and package index settings hold in the build too."""
    files = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf", "/etc/uv/uv.toml")
    return [f"--volume={path}:{path}:ro" for path in files if Path(path).exists()]


def _bundle(root: Path, image: dict[str, object], command: Sequence[str]) -> dict[str, object]:
    """An OCI runtime configuration (specification 1.0) as strict as the restricted pod standard."""
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": USER, "gid": USER},
            "args": list(command),
            "env": image["Env"],
            "cwd": image["WorkingDir"],
            "noNewPrivileges": True,
        },
        "root": {"path": str(root), "readonly": True},
        "hostname": "image-test",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"},
            {"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "ro"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]},
        ],
        "linux": {
            "namespaces": [{"type": each} for each in ("pid", "network", "ipc", "uts", "mount")]
        },
    }
