"""OCI images out of ready layers: manifest, configuration, and an archive as a stream.

Formats: OCI image specification 1.1 (manifest, config, image layout). The archive is the image
layout in a tar, as `ctr images import -` reads it. Blobs that the reader has already are named in
the manifest but left out of the archive.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from hack.images.layers import Layer

_TYPE = "application/vnd.oci.image"


@dataclass(frozen=True)
class OciImage:
    """An image: its reference (`registry/name:tag`), its layers and its config section."""

    reference: str
    layers: tuple[Layer, ...]
    settings: dict[str, Any]

    @property
    def config(self) -> bytes:
        """The image configuration: platform, settings and the digests of the unpacked layers."""
        return _json(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": self.settings,
                "rootfs": {"type": "layers", "diff_ids": [each.digest for each in self.layers]},
                "history": [],
            }
        )

    @property
    def manifest(self) -> bytes:
        """The image manifest; its digest is the image's."""
        return _json(
            {
                "schemaVersion": 2,
                "mediaType": f"{_TYPE}.manifest.v1+json",
                "config": _descriptor(f"{_TYPE}.config.v1+json", self.config),
                "layers": [
                    {
                        "mediaType": f"{_TYPE}.layer.v1.tar",
                        "digest": layer.digest,
                        "size": layer.size,
                    }
                    for layer in self.layers
                ],
            }
        )

    @property
    def digest(self) -> str:
        """`sha256:...` of the manifest."""
        return _digest(self.manifest)

    def write(self, stream: BinaryIO, have: Collection[str]) -> None:
        """Write the archive to `stream`, without the layers whose digests are in `have`."""
        with tarfile.open(fileobj=stream, mode="w|", bufsize=1 << 20) as archive:
            _add(archive, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
            for layer in _distinct(self.layers):
                if layer.digest not in have:
                    member = tarfile.TarInfo(_blob(layer.digest))
                    member.size = layer.size
                    with layer.tar.open("rb") as source:
                        archive.addfile(member, source)
            _add(archive, _blob(_digest(self.config)), self.config)
            _add(archive, _blob(self.digest), self.manifest)
            _add(archive, "index.json", self._index())

    def _index(self) -> bytes:
        entry = _descriptor(f"{_TYPE}.manifest.v1+json", self.manifest)
        tag = self.reference.rpartition(":")[2]
        names = {
            "io.containerd.image.name": self.reference,
            "org.opencontainers.image.ref.name": tag,
        }
        return _json({"schemaVersion": 2, "manifests": [{**entry, "annotations": names}]})


def _distinct(layers: Sequence[Layer]) -> list[Layer]:
    return list({layer.digest: layer for layer in layers}.values())


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
