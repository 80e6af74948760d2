"""The whole engine in this process, with the tiny controller, and a way to wait for results."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from finetune_operator.decision import ControllerTable
from finetune_operator.engine.controller import Controller
from finetune_operator.engine.health import Health
from finetune_operator.engine.kube_client import KubeClient
from finetune_operator.engine.leader_election import LeaderElection, Timing
from finetune_operator.engine.metrics import Metrics
from finetune_operator.engine.server_clock import ServerClock
from finetune_operator.settings import parse

from tests.api.client import Api
from tests.api.engine import toy

# A restarting API server takes longer than a leader may wait; these tests are about watches only.
PATIENT = Timing(lease_duration=600, renew_deadline=500, renew_interval=0.5, retry_interval=0.2)


@asynccontextmanager
async def running(
    kubeconfig: Path,
    health: Health,
    lease: str,
    namespace: str = "",
    clock: ServerClock | None = None,
    controllers: ControllerTable | None = None,
) -> AsyncIterator[Controller]:
    """An engine that leads for as long as the context lasts."""
    flags = ["--trainer-image=a", "--serving-image=b", f"--lease-name={lease}"]
    flags += [f"--namespace={each}" for each in namespace.split(",") if each]
    options = parse([*flags, f"--kubeconfig={kubeconfig}"], {"POD_NAMESPACE": "default"})
    client = await KubeClient.connect(str(kubeconfig), clock)
    leader_election = LeaderElection(client, "default", lease, options.identity, PATIENT)
    async with asyncio.timeout(30):
        await leader_election.acquire()
    renewal, stop = asyncio.create_task(leader_election.renew()), asyncio.Event()
    controllers = controllers or toy.build_controllers(options.settings)
    engine = Controller(client, options, controllers, Metrics(), health, leader_election)
    run = asyncio.create_task(engine.run(stop, lambda: None))
    try:
        yield engine
    finally:
        stop.set()
        await run
        renewal.cancel()
        await asyncio.wait({renewal})
        await client.close()


async def until(what: str, condition: Callable[[], bool], seconds: float = 60) -> float:
    """Seconds until the condition, which may call the API server, holds."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    while not await asyncio.to_thread(condition):
        assert loop.time() - started < seconds, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.05)
    return loop.time() - started


def prepared(api: Api, name: str, namespace: str = "default") -> Callable[[], bool]:
    """A condition: the job has a status, which is written before its children are created."""
    return lambda: "phase" in api.get("FineTuneJob", namespace, name)["status"]
