"""Archives that were made to do harm: each is refused as the user's mistake, and leaves no file."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from finetune_trainer.runtime.errors import RetryableError, StageError, UserError
from finetune_trainer.sources import archive
from finetune_trainer.sources.archive import unpack
from finetune_trainer.sources.model_files import MODEL_LAYOUT, is_needed

from tests.trainer.sources.test_archive import member

FREE = 1_000_000
Members = list[tuple[str, bytes]]


def tar_with(members: Members, mode: str = "w:gz") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            info = member(name, tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def zip_with(members: Members) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members:
            info = zipfile.ZipInfo("placeholder")
            info.filename = name
            made.writestr(info, content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def require_space(needed: int) -> None:
    if needed > FREE:
        raise RetryableError("WorkspaceFull", f"{needed} bytes", "Enlarge it.")


def refused(folder: Path, content: bytes, suffix: str) -> StageError:
    """The error of an archive; nothing of it may be outside its folder."""
    path = folder / f"model{suffix}"
    path.write_bytes(content)
    target = folder / "deep" / "target"
    target.mkdir(parents=True)
    with pytest.raises(StageError) as caught:
        unpack(path, target, MODEL_LAYOUT, is_needed, require_space, "https://h/model")
    outside = {each for each in folder.rglob("*") if each.is_file()} - {path}
    assert [each for each in outside if not each.is_relative_to(target)] == []
    return caught.value


PACKERS = [pytest.param(tar_with, ".tar.gz", id="tar"), pytest.param(zip_with, ".zip", id="zip")]


@pytest.mark.parametrize(("pack", "suffix"), PACKERS)
@pytest.mark.parametrize(
    "name",
    [
        "../config.json",
        "a/../../config.json",
        "/config.json",
        "//config.json",
        "a\\..\\..\\config.json",
        "C:\\config.json",
        "a\nb/config.json",
        "a\x1b[2J/config.json",
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(
    tmp_path: Path, pack: Callable[[Members], bytes], suffix: str, name: str
) -> None:
    error = refused(tmp_path, pack([("config.json", b"{}"), (name, b"{}")]), suffix)
    assert error.failure.reason == "UnsafeArchive"


def test_a_name_with_nul_is_cut_or_refused(tmp_path: Path) -> None:
    """zipfile cuts names at NUL, as tar does; both then have the name twice."""
    content = zip_with([("config.json", b"{}"), ("config.jsonX.png", b"{}")])
    hostile = content.replace(b"config.jsonX.png", b"config.json\0.png")
    assert refused(tmp_path, hostile, ".zip").failure.reason in ("UnsafeArchive", "BrokenArchive")


@pytest.mark.parametrize(("pack", "suffix"), PACKERS)
@pytest.mark.parametrize("again", ["config.json", "./config.json", "a/./config.json"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(
    tmp_path: Path, pack: Callable[[Members], bytes], suffix: str, again: str
) -> None:
    first = "a/config.json" if again.startswith("a/") else "config.json"
    error = refused(tmp_path, pack([(first, b"{}"), (again, b"[]")]), suffix)
    assert error.failure.reason == "UnsafeArchive"
    assert "twice" in error.failure.message


@pytest.mark.parametrize(("pack", "suffix"), PACKERS)
def test_a_file_that_is_a_folder_too_is_refused(
    tmp_path: Path, pack: Callable[[Members], bytes], suffix: str
) -> None:
    members = [("config.json", b"{}"), ("tokenizer.json", b"{}"), ("tokenizer.json/a.json", b"{}")]
    assert refused(tmp_path, pack(members), suffix).failure.reason == "UnsafeArchive"


@pytest.mark.parametrize(("pack", "suffix"), PACKERS)
def test_a_name_that_is_too_long_for_a_file_is_refused(
    tmp_path: Path, pack: Callable[[Members], bytes], suffix: str
) -> None:
    members = [("config.json", b"{}"), (f"{'a' * 300}.json", b"{}")]
    assert refused(tmp_path, pack(members), suffix).failure.reason == "UnsafeArchive"


@pytest.mark.parametrize(("pack", "suffix"), PACKERS)
@pytest.mark.parametrize("name", ["{}.txt", "{}/"])
def test_an_archive_with_very_many_members_is_refused(
    tmp_path: Path,
    pack: Callable[[Members], bytes],
    suffix: str,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 100)
    members = [("config.json", b"{}"), *((name.format(each), b"") for each in range(100))]
    error = refused(tmp_path, pack(members), suffix)
    assert error.failure.reason == "UnsafeArchive"
    assert "more than 100 files and folders" in error.failure.message


@pytest.mark.parametrize(("pack", "suffix"), PACKERS)
def test_a_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, pack: Callable[[Members], bytes], suffix: str
) -> None:
    bomb = pack([("config.json", b"{}"), ("model.safetensors", b"\0" * (FREE + 1))])
    assert len(bomb) < FREE / 100
    assert refused(tmp_path, bomb, suffix).failure.reason == "WorkspaceFull"
    assert not list((tmp_path / "deep").rglob("*.*"))


def test_a_zip_that_declares_fewer_bytes_than_it_has_is_refused(tmp_path: Path) -> None:
    content = zip_with([("config.json", b"{}"), ("model.safetensors", b"\0" * 5000)])
    small = content.replace(struct.pack("<L", 5000), struct.pack("<L", 50))
    assert refused(tmp_path, small, ".zip").failure.reason == "BrokenArchive"


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    content = bytearray(zip_with([("config.json", b"{}")]))
    local, central = content.index(b"PK\x03\x04"), content.index(b"PK\x01\x02")
    content[local + 6] |= 1
    content[central + 8] |= 1
    assert refused(tmp_path, bytes(content), ".zip").failure.reason == "BrokenArchive"


def test_a_zip_with_an_unknown_compression_is_refused(tmp_path: Path) -> None:
    content = bytearray(zip_with([("config.json", b"{}")]))
    local, central = content.index(b"PK\x03\x04"), content.index(b"PK\x01\x02")
    content[local + 8] = content[central + 10] = 99
    assert refused(tmp_path, bytes(content), ".zip").failure.reason == "BrokenArchive"


def test_a_tar_that_is_damaged_inside_a_file_is_refused(tmp_path: Path) -> None:
    plain = tar_with([("config.json", b"{}"), ("tokenizer.json", bytes(range(256)) * 2000)], "w")
    packed = bytearray(gzip.compress(plain))
    middle = len(packed) // 2
    packed[middle : middle + 40] = b"\xff" * 40
    assert refused(tmp_path, bytes(packed), ".tar.gz").failure.reason == "BrokenArchive"


def test_a_zip_that_is_damaged_inside_a_file_is_refused(tmp_path: Path) -> None:
    text = zlib.compress(bytes(range(256)) * 40) * 20
    content = bytearray(zip_with([("config.json", b"{}"), ("tokenizer.json", text)]))
    middle = len(content) // 2
    content[middle : middle + 40] = b"\xff" * 40
    assert refused(tmp_path, bytes(content), ".zip").failure.reason == "BrokenArchive"


@pytest.mark.timeout(20)
def test_a_tar_with_a_negative_size_is_refused(tmp_path: Path) -> None:
    """tarfile of some versions of Python reads such an archive in a circle."""
    plain = bytearray(tar_with([("config.json", b"{}"), ("tokenizer.json", b"{}")], "w"))
    header = 1024
    plain[header + 124 : header + 136] = b"\xff" * 10 + b"\xf8\x00"
    checksum = sum(plain[header : header + 148]) + 8 * 32 + sum(plain[header + 156 : header + 512])
    plain[header + 148 : header + 156] = b"%06o\0 " % checksum
    assert isinstance(refused(tmp_path, bytes(plain), ".tar"), UserError)
