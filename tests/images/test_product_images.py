"""The Dockerfiles that users build: they build, and what they make starts under strict rules.

The work is done once per content of what goes into an image; the same content is only read back.
"""

from __future__ import annotations

from typing import Any

import pytest

from hack.images import docker
from hack.images.product import PRODUCTS, checked
from tests.images.conftest import need_root

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(params=sorted(PRODUCTS))
def name(request: pytest.FixtureRequest) -> str:
    if not docker.answers():
        need_root()
    return str(request.param)


def test_dockerfile_builds_an_image_that_starts_without_root(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, Any] = checked(PRODUCTS[name])
    with capsys.disabled():
        seconds = f"{found['buildSeconds']} s to build, {found['startSeconds']} s to start twice"
        print(f"\nimage of the {name}, when its content was new: {seconds}")
    assert (found["uid"], found["gid"]) == (65532, 65532)
    assert not found["rootIsWritable"]
    assert set(found["versions"]) == set(PRODUCTS[name].modules)
    assert found["output"].strip()


def test_trainer_image_carries_pytorch_for_gpus() -> None:
    if not docker.answers():
        need_root()
    versions: Any = checked(PRODUCTS["trainer"])["versions"]
    assert "+cu" in versions["torch"]
