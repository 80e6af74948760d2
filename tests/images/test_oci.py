"""The archive that containerd reads: every blob under its digest, and nothing it has already."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from hack.images.layers import Layer
from hack.images.oci import OciImage


@pytest.fixture
def image(tmp_path: Path) -> OciImage:
    layers = []
    for number in range(2):
        tar = tmp_path / f"{number}.tar"
        tar.write_bytes(bytes([number]) * 2000)
        digest = f"sha256:{hashlib.sha256(tar.read_bytes()).hexdigest()}"
        layers.append(Layer(tar, digest, 2000))
    return OciImage("localhost/some:tag", tuple(layers), {"User": "65532:65532"})


def _members(image: OciImage, have: set[str]) -> dict[str, bytes]:
    stream = io.BytesIO()
    image.write(stream, have)
    stream.seek(0)
    with tarfile.open(fileobj=stream) as archive:
        found = {member.name: archive.extractfile(member) for member in archive}
        return {name: file.read() for name, file in found.items() if file}


def test_every_blob_has_the_content_of_its_digest(image: OciImage) -> None:
    blobs = {k: v for k, v in _members(image, set()).items() if k.startswith("blobs/")}
    assert len(blobs) == 4
    for name, content in blobs.items():
        assert name == f"blobs/sha256/{hashlib.sha256(content).hexdigest()}"


def test_index_leads_through_the_manifest_to_every_layer(image: OciImage) -> None:
    members = _members(image, set())
    [entry] = json.loads(members["index.json"])["manifests"]
    assert entry["digest"] == image.digest
    assert entry["annotations"]["io.containerd.image.name"] == "localhost/some:tag"
    manifest = json.loads(members["blobs/" + entry["digest"].replace(":", "/")])
    config = json.loads(members["blobs/" + manifest["config"]["digest"].replace(":", "/")])
    assert config["config"]["User"] == "65532:65532"
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]
    for blob in (manifest["config"], *manifest["layers"]):
        assert len(members["blobs/" + blob["digest"].replace(":", "/")]) == blob["size"]


def test_layers_that_the_reader_has_are_named_but_not_shipped(image: OciImage) -> None:
    held = image.layers[0].digest
    members = _members(image, {held})
    assert f"blobs/{held.replace(':', '/')}" not in members
    assert members.keys() == _members(image, set()).keys() - {f"blobs/{held.replace(':', '/')}"}


def test_same_layers_and_settings_give_the_same_digest(image: OciImage) -> None:
    again = OciImage(image.reference, image.layers, dict(image.settings))
    other = OciImage(image.reference, image.layers, {"User": "0"})
    assert again.digest == image.digest != other.digest
