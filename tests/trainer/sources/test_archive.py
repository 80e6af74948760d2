"""Archives of models: unpacked and cached, and refused if they are unsafe or broken."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources import Address
from finetune_trainer.sources.snapshot import open_snapshot

from tests.trainer.servers import Web
from tests.trainer.source_files import NOWHERE, ignore_progress


def tar_of(folder: Path, prefix: str = "tiny/") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, prefix + path.name)
    return packed.getvalue()


def zip_of(folder: Path) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return packed.getvalue()


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_https_model_archive_is_unpacked_and_cached(
    web: Web, tmp_path: Path, tiny_model_folder: Path, kind: str
) -> None:
    packed = tar_of(tiny_model_folder) if kind == "tar.gz" else zip_of(tiny_model_folder)
    web.files[f"tiny.{kind}"] = packed
    address = Address("model", f"{web.url}/tiny.{kind}")
    for uid in ("job-1", "job-2"):
        snapshot = open_snapshot(address, NOWHERE, tmp_path, uid, ignore_progress)
        snapshot.fetch_small_files()
        folder = snapshot.fetch_all_files()
    assert {path.name for path in folder.iterdir()} - {".finetune.json"} == {
        path.name for path in tiny_model_folder.iterdir()
    }
    assert web.fetched == [f"tiny.{kind}"]


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "evil",
    [
        member("../config.json"),
        member("/etc/config.json"),
        member("config.json", tarfile.SYMTYPE, "/etc/passwd"),
        member("config.json", tarfile.LNKTYPE, "../../secret"),
        member("config.json", tarfile.CHRTYPE),
    ],
    ids=["parent", "absolute", "symlink", "hardlink", "device"],
)
def test_unsafe_archive_is_refused_and_writes_nothing(
    web: Web, tmp_path: Path, evil: tarfile.TarInfo
) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(evil)
    web.files["evil.tar.gz"] = packed.getvalue()
    address = Address("model", f"{web.url}/evil.tar.gz")
    snapshot = open_snapshot(address, NOWHERE, tmp_path / "cache", "job-1", ignore_progress)
    with pytest.raises(UserError) as caught:
        snapshot.fetch_small_files()
    assert caught.value.failure.reason == "UnsafeArchive"
    assert not list(tmp_path.rglob("config.json"))


@pytest.mark.parametrize(
    ("content", "reason"), [(b"junk", "BrokenArchive"), (b"", "BrokenArchive")]
)
def test_broken_archive_is_reported(web: Web, tmp_path: Path, content: bytes, reason: str) -> None:
    web.files["broken.tar.gz"] = content
    address = Address("model", f"{web.url}/broken.tar.gz")
    snapshot = open_snapshot(address, NOWHERE, tmp_path, "job-1", ignore_progress)
    with pytest.raises(UserError) as caught:
        snapshot.fetch_small_files()
    assert caught.value.failure.reason == reason


def test_truncated_archive_is_reported(web: Web, tmp_path: Path, tiny_model_folder: Path) -> None:
    web.files["cut.tar.gz"] = tar_of(tiny_model_folder)[:200_000]
    address = Address("model", f"{web.url}/cut.tar.gz")
    snapshot = open_snapshot(address, NOWHERE, tmp_path, "job-1", ignore_progress)
    with pytest.raises(UserError) as caught:
        snapshot.fetch_small_files()
    assert caught.value.failure.reason == "BrokenArchive"
