"""Images and how they get to the nodes: by import, never by pull.

An image is imported and unpacked once, into a "golden" containerd root in the cache, named after
the exact set of images in it. A node starts from a clone of that root: blobs by hard links,
unpacked layers by name, both never written in place. That takes half a second however large the
images are. Nodes that are already running import what changed.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from hack.cluster.errors import ClusterError
from hack.cluster.paths import STATE, put
from hack.cluster.process import read_text

CONTENT = "io.containerd.content.v1.content/blobs/sha256"
_WANTED = STATE / "images.json"


@dataclass(frozen=True)
class Image:
    """An image: its name, the digest (`sha256:...`) of its manifest, and how to get its archive.

    `write(stream, have)` writes an OCI archive to `stream`; the blobs whose digests are in `have`
    are on the other side already and may be left out.
    """

    reference: str
    digest: str
    write: Callable[[BinaryIO, Collection[str]], None]

    @staticmethod
    def from_archive(path: Path) -> Image:
        """The image in an OCI archive that holds exactly one, with its name as an annotation."""
        try:
            with tarfile.open(path) as archive:
                member = archive.extractfile("index.json")
                entries = json.load(member)["manifests"] if member else []
            [entry] = entries
            name = entry["annotations"]["io.containerd.image.name"]
        except (OSError, KeyError, ValueError, tarfile.TarError) as error:
            raise ClusterError(
                f"{path} is not an OCI archive of one image with its name: {error!r}"
            ) from None

        def write(stream: BinaryIO, have: Collection[str]) -> None:
            with path.open("rb") as file:
                while chunk := file.read(1 << 22):
                    stream.write(chunk)

        return Image(name, entry["digest"], write)


def import_image(ctr: Sequence[str], image: Image, have: Collection[str]) -> None:
    """Stream one image into the containerd that the command `ctr` talks to, and unpack it."""
    try:
        _import(ctr, image, have)
    except ClusterError as error:
        if "parent snapshot" not in str(error):
            raise
        # containerd's collector removed a layer between two steps of the import; a retry fixes it.
        _import(ctr, image, have)


def _import(ctr: Sequence[str], image: Image, have: Collection[str]) -> None:
    argv = [*ctr, "images", "import", "-"]
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output: list[bytes] = []
    reader = threading.Thread(target=lambda: output.append(cast(BinaryIO, process.stdout).read()))
    reader.start()
    broken = False
    try:
        with cast(BinaryIO, process.stdin) as stream:
            image.write(stream, have)
    except BrokenPipeError:  # its own message, below, says why
        broken = True
    except BaseException:
        process.kill()
        raise
    finally:
        status = process.wait()
        reader.join()
        cast(BinaryIO, process.stdout).close()
    if status != 0 or broken:
        message = b"".join(output).decode(errors="replace").strip()[-1500:]
        raise ClusterError(f"the import of {image.reference} failed: {message}")


def listed(output: str) -> dict[str, str]:
    """Names and digests out of what `ctr images ls` prints."""
    rows = (line.split() for line in output.splitlines()[1:])
    return {row[0]: row[2] for row in rows if len(row) > 2}


def blobs(root: Path) -> frozenset[str]:
    """The digests of the blobs in a containerd root."""
    folder = root / CONTENT
    names = (p.name for p in folder.iterdir()) if folder.exists() else ()
    return frozenset(f"sha256:{n}" for n in names)


def remembered() -> dict[str, str]:
    """The images (name to digest) that this checkout's cluster starts with."""
    text = read_text(_WANTED)
    known: dict[str, str] = json.loads(text) if text else {}
    return known


def remember(images: Iterable[Image]) -> dict[str, str]:
    """Add images to those that the cluster starts with, by name; returns them all."""
    wanted = remembered() | {i.reference: i.digest for i in images}
    put(_WANTED, json.dumps(wanted, indent=1, sort_keys=True) + "\n")
    return wanted
