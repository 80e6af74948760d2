"""One cluster for all end-to-end tests, brought up as `make demo` does.

It is taken down at the end only when it was down at the start. What an earlier run or the demo left
in its namespace goes first: a job that has ended already would prove nothing.
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
from tests.e2e.jobs import until


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
    with timeline.step(f"Empty the namespace {platform.NAMESPACE}"):
        _empty(up)
    platform.add_tiny_assets(up)
    yield up
    if not was_up:
        with timeline.step("Take the cluster down"):
            platform.take_down()


def _empty(up: platform.Platform) -> None:
    kinds = "finetunejobs,modelendpoints"
    up.kubectl.run("delete", kinds, "--all", "--wait", "--timeout=120s", timeout=150)
    # Pods of jobs and of endpoints; the janitor's one belongs to the namespace, and stays.
    ours = ("get", "pods", "-l", "app.kubernetes.io/component!=janitor")
    until("the pods to go", 180, lambda: not up.kubectl.json(*ours)["items"])


@pytest.fixture(scope="session")
def core(running: platform.Platform) -> client.CoreV1Api:
    settings = client.Configuration(proxy="")  # the cluster is on this computer
    config.load_kube_config(str(running.kubectl.kubeconfig), client_configuration=settings)
    return client.CoreV1Api(client.ApiClient(settings))


@pytest.fixture(scope="session")
def history(core: client.CoreV1Api) -> Iterator[PodHistory]:
    with PodHistory(core, platform.NAMESPACE) as recording:
        yield recording
