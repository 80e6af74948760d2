"""The serving image without `python`, as vLLM's release images are: one more, tiny layer."""

from __future__ import annotations

import dataclasses
import hashlib
import tarfile
from pathlib import Path

from hack.cluster import layout
from hack.cluster.engine import Engine
from hack.cluster.images import Image, blobs, import_image
from hack.images import catalog
from hack.images.layers import Layer

REFERENCE = "localhost/finetune-vllm-cpu:only-python3"
BIN = "opt/venv/bin"


def import_variant(engine: Engine, folder: Path) -> str:
    """Put the image into the nodes that run; returns its name. `folder` is for its layer."""
    usual = catalog.image("vllm")
    layer = _build_layer(folder / "only-python3.tar")
    built = dataclasses.replace(usual, reference=REFERENCE, layers=(*usual.layers, layer))
    image = Image(built.reference, built.digest, built.write)
    for node in engine.nodes:
        import_image(engine.ctr_args(node), image, blobs(layout.containerd_root(node)))
    return REFERENCE


def _build_layer(path: Path) -> Layer:
    """Removes `python`, to which `python3` is a link, and makes that a link to Debian's."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo(f"{BIN}/.wh.python"))
        link = tarfile.TarInfo(f"{BIN}/python3")
        link.type, link.linkname = tarfile.SYMTYPE, "/usr/bin/python3"
        tar.addfile(link)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Layer(path, f"sha256:{digest}", path.stat().st_size)
