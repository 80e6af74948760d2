"""One cluster for all end-to-end tests, brought up as `make demo` does.

It is taken down at the end only when it was down at the start.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kubernetes import client, config

from hack.cluster import engine
from hack.cluster.errors import NotPossibleHere
from hack.demo import platform
from hack.demo.timeline import Timeline
from tests.e2e.history import PodHistory


@pytest.fixture(scope="session")
def timeline() -> Timeline:
    return Timeline()


@pytest.fixture(scope="session")
def running(timeline: Timeline) -> Iterator[platform.Platform]:
    """The cluster with the operator, the demo's model and data, and a tiny model and data."""
    try:
        engine.choose()
    except NotPossibleHere as reason:
        pytest.skip(str(reason))
    was_up = platform.is_up()
    up = platform.bring_up(timeline)
    platform.add_tiny_assets(up)
    yield up
    if not was_up:
        with timeline.step("Take the cluster down"):
            platform.take_down()


@pytest.fixture(scope="session")
def core(running: platform.Platform) -> client.CoreV1Api:
    api = config.new_client_from_config(str(running.kubectl.kubeconfig))
    return client.CoreV1Api(api)


@pytest.fixture(scope="session")
def history(core: client.CoreV1Api) -> Iterator[PodHistory]:
    with PodHistory(core, platform.NAMESPACE) as recording:
        yield recording
