"""The whole engine in this process, against an API server that is restarted or goes silent."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from finetune_operator import logs
from finetune_operator.cluster import Cluster
from finetune_operator.engine import Engine
from finetune_operator.health import Health
from finetune_operator.leader import Election, Timing
from finetune_operator.metrics import Metrics
from finetune_operator.settings import parse

from hack.cluster.apiserver import ControlPlane
from tests.api.client import Api
from tests.api.conftest import CRDS, started
from tests.api.engine import toy
from tests.api.engine.proxy import Proxy

# An API server that starts again takes longer than a leader may wait; here only watches matter.
PATIENT = Timing(duration=600, deadline=500, renew=0.5, retry=0.2)


@pytest.fixture(scope="module")
def thread() -> Iterator[ThreadPoolExecutor]:
    """The thread that starts API servers: the kernel ends them with the thread, not the process."""
    with ThreadPoolExecutor(1) as thread:
        yield thread


@pytest.fixture(scope="module")
def own_plane(
    tmp_path_factory: pytest.TempPathFactory, thread: ThreadPoolExecutor
) -> Iterator[ControlPlane]:
    """An API server that these tests may disturb."""
    plane = started(tmp_path_factory.mktemp("watched-plane"))
    try:
        thread.submit(plane.__enter__).result()
        plane.kubectl("apply", "--server-side", "-f", CRDS)
        plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        yield plane
    finally:
        plane.stop()


@pytest.fixture(scope="module")
def own_api(own_plane: ControlPlane) -> Api:
    return Api(own_plane.kubeconfig)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What a real process would have logged."""
    root = logging.getLogger()
    before, written = (root.handlers[:], root.level), io.StringIO()
    logs.configure("text", "info")
    for handler in root.handlers:
        assert isinstance(handler, logging.StreamHandler)
        handler.setStream(written)
    yield written
    root.handlers[:], root.level = before


@asynccontextmanager
async def running(kubeconfig: Path, health: Health, lease: str) -> AsyncIterator[Engine]:
    """An engine with the tiny product that leads for as long as the context lasts."""
    images = ["--trainer-image=a", "--serving-image=b", f"--lease-name={lease}"]
    options = parse([*images, f"--kubeconfig={kubeconfig}"], {"POD_NAMESPACE": "default"})
    cluster = await Cluster.connect(str(kubeconfig))
    election = Election(cluster, "default", lease, options.identity, PATIENT)
    await election.acquire()
    hold, stop = asyncio.create_task(election.hold()), asyncio.Event()
    product = toy.product(options.settings)
    engine = Engine(cluster, options, product, Metrics(), health, election)
    run = asyncio.create_task(engine.run(stop, lambda: None))
    try:
        yield engine
    finally:
        stop.set()
        await run
        hold.cancel()
        await asyncio.wait({hold})
        await cluster.close()


async def until(what: str, condition: Callable[[], bool], seconds: float = 60) -> float:
    """Seconds until the condition, which may ask the API server, holds."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    while not await asyncio.to_thread(condition):
        assert loop.time() - begun < seconds, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.05)
    return loop.time() - begun


def prepared(api: Api, name: str) -> Callable[[], bool]:
    return lambda: "status" in api.get("FineTuneJob", "default", name)


async def test_watches_recover_after_the_api_server_was_restarted(
    own_plane: ControlPlane,
    own_api: Api,
    thread: ThreadPoolExecutor,
    log: io.StringIO,
) -> None:
    async with running(own_plane.kubeconfig, Health(), "restarted") as engine:
        own_api.create(toy.finetune_job("default", "before"))
        own_api.create(toy.finetune_job("default", "leaves"))
        await until("before is prepared", prepared(own_api, "before"))
        await until("leaves is prepared", prepared(own_api, "leaves"))

        await asyncio.get_running_loop().run_in_executor(thread, own_plane.restart_apiserver)
        own_api.delete("FineTuneJob", "default", "leaves")
        own_api.create(toy.finetune_job("default", "after"))

        took = await until("after is prepared", prepared(own_api, "after"))
        await until(
            "the deletion is known",
            lambda: engine.cache.get("FineTuneJob", "default", "leaves") is None,
        )
        lines = log.getvalue().splitlines()
        assert [each for each in lines if each.split()[1] not in ("INFO", "WARNING")] == []
        print(f"\nwatch back {took:.1f} s after the API server was ready again, {len(lines)} lines")


async def test_a_silent_watch_is_noticed_though_all_else_works(
    own_plane: ControlPlane, own_api: Api, tmp_path: Path
) -> None:
    health = Health(max_echo_age=4)
    port = int(own_plane.url.rpartition(":")[2])
    async with Proxy(port) as proxy:
        kubeconfig = tmp_path / "kubeconfig"
        text = own_plane.kubeconfig.read_text()
        kubeconfig.write_text(text.replace(own_plane.url, f"https://127.0.0.1:{proxy.port}"))
        async with running(kubeconfig, health, "silent") as engine:
            own_api.create(toy.finetune_job("default", "heard"))
            await until("heard is prepared", prepared(own_api, "heard"))
            await until("the watch echoes", lambda: health.echo_age() < 1)
            assert health.sick() is None

            assert proxy.silence() > 0
            lease = own_api.get("Lease", "default", "silent")
            took = await until("the process calls itself sick", lambda: bool(health.sick()))

            assert "the watch is dead" in (health.sick() or "")
            print(f"\na silent watch noticed {took:.1f} s after it went silent, limit 4 s")
            await until("the lease is renewed all the same", lambda: renewed_since(own_api, lease))
            assert engine.cache.get("FineTuneJob", "default", "heard")


def renewed_since(api: Api, lease: dict[str, dict[str, str]]) -> bool:
    now = api.get("Lease", "default", "silent")
    return bool(now["spec"]["renewTime"] > lease["spec"]["renewTime"])
