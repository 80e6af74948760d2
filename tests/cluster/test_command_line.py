"""Parts that need no cluster: image archives, and the answer where no cluster is possible."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hack.cluster.__main__ import main
from hack.cluster.errors import ClusterError
from hack.cluster.images import Image, listed
from hack.cluster.tinyimage import PAUSE, pause_image


def test_an_archive_names_its_image_and_digest(tmp_path: Path) -> None:
    image = pause_image()
    with (tmp_path / "pause.tar").open("wb") as stream:
        image.write(stream, frozenset())

    found = Image.from_archive(tmp_path / "pause.tar")

    assert (found.reference, found.digest) == (PAUSE, image.digest)


def test_a_file_that_is_no_archive_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "no.tar").write_text("not a tar")
    with pytest.raises(ClusterError, match=r"no\.tar is not an OCI archive"):
        Image.from_archive(tmp_path / "no.tar")


def test_the_list_of_images_is_read_from_what_ctr_prints() -> None:
    printed = "REF TYPE DIGEST SIZE\nlocalhost/a:1 application/x sha256:12 1.0 MiB linux/amd64 -\n"
    assert listed(printed) == {"localhost/a:1": "sha256:12"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_without_root_and_docker_one_line_says_so_with_status_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no docker there
    os.seteuid(65534)
    try:
        status = main(["up"])
    finally:
        os.seteuid(0)
    message = capsys.readouterr().err
    assert status == 3
    assert message.startswith("hack.cluster: no cluster can run here")
    assert message.count("\n") == 1
