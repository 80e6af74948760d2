"""The whole engine in this process, with the tiny product, and waiting for what it does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from finetune_operator.engine.controller import Controller
from finetune_operator.engine.health import Health
from finetune_operator.engine.kube_client import KubeClient
from finetune_operator.engine.leader_election import LeaderElection, Timing
from finetune_operator.engine.metrics import Metrics
from finetune_operator.engine.reconciler import Controllers
from finetune_operator.engine.server_clock import ServerClock
from finetune_operator.settings import parse

from tests.api.client import Api
from tests.api.engine import toy

# An API server that starts again takes longer than a leader may wait; here only watches matter.
PATIENT = Timing(duration=600, deadline=500, renew=0.5, retry=0.2)


@asynccontextmanager
async def running(
    kubeconfig: Path,
    health: Health,
    lease: str,
    namespace: str = "",
    clock: ServerClock | None = None,
    product: Controllers | None = None,
) -> AsyncIterator[Controller]:
    """An engine with the tiny product that leads for as long as the context lasts."""
    flags = ["--trainer-image=a", "--serving-image=b", f"--lease-name={lease}"]
    flags += [f"--namespace={each}" for each in namespace.split(",") if each]
    options = parse([*flags, f"--kubeconfig={kubeconfig}"], {"POD_NAMESPACE": "default"})
    cluster = await KubeClient.connect(str(kubeconfig), clock)
    election = LeaderElection(cluster, "default", lease, options.identity, PATIENT)
    async with asyncio.timeout(30):
        await election.acquire()
    hold, stop = asyncio.create_task(election.hold()), asyncio.Event()
    product = product or toy.product(options.settings)
    engine = Controller(cluster, options, product, Metrics(), health, election)
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


def prepared(api: Api, name: str, namespace: str = "default") -> Callable[[], bool]:
    """A condition: the job has a status, which is written before its children are made."""
    return lambda: "status" in api.get("FineTuneJob", namespace, name)
