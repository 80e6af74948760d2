"""The image of the pause container: one static program, packed into an OCI archive by hand.

Every pod needs it, and a closed cluster cannot pull it. With an argument the program is also the
small tool that the cluster's own tests run in pods, see `pause/main.go`.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

from hack.cluster.binaries import HERE, Program, built
from hack.cluster.images import Image

PAUSE = "localhost/pause:1"
_OCI = "application/vnd.oci.image."


def pause_image() -> Image:
    """The pause image; its program is compiled (in a second) where the cache has none."""
    blobs, manifest = _pack(built(Program("pause", HERE / "pause", "."), "pause-image"))

    def write(stream: BinaryIO, have: Collection[str]) -> None:
        with tarfile.open(fileobj=stream, mode="w|") as archive:
            for name, data in _archive(blobs, manifest).items():
                _add(archive, name, data)

    return Image(PAUSE, manifest, write)


def _pack(binary: Path) -> tuple[dict[str, bytes], str]:
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        _add(archive, "pause", binary.read_bytes(), 0o755)
    blobs: dict[str, bytes] = {}

    def blob(data: bytes, kind: str) -> dict[str, str | int]:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": _OCI + kind, "digest": digest, "size": len(data)}

    packed = blob(layer.getvalue(), "layer.v1.tar")
    settings = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/pause"], "User": "65532:65532"},
        "rootfs": {"type": "layers", "diff_ids": [packed["digest"]]},
    }
    config = blob(json.dumps(settings).encode(), "config.v1+json")
    document = {"schemaVersion": 2, "config": config, "layers": [packed]}
    manifest = {**document, "mediaType": _OCI + "manifest.v1+json"}
    return blobs, str(blob(json.dumps(manifest).encode(), "manifest.v1+json")["digest"])


def _archive(blobs: dict[str, bytes], manifest: str) -> dict[str, bytes]:
    entry = {
        "mediaType": _OCI + "manifest.v1+json",
        "digest": manifest,
        "size": len(blobs[manifest]),
        "annotations": {"io.containerd.image.name": PAUSE},
    }
    files = {f"blobs/sha256/{d.removeprefix('sha256:')}": data for d, data in blobs.items()}
    index = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    return {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', **files, "index.json": index}


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    archive.addfile(info, io.BytesIO(data))
