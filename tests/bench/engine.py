"""How much time the engine adds to a bare loop of the same requests.

    PYTHONPATH=.:operator python tests/bench/engine.py [jobs]

One real API server without controllers. In both runs every job gets a ConfigMap, a suspended
batch Job, a status and an event; 16 at a time. The bare loop only sends these requests; the engine
receives the jobs through its watches, plans, and writes. The ratio of the two times is the cost of
the engine, and does not depend on how fast or busy the machine is.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from finetune_operator.decision import EventRecord, Manifest
from finetune_operator.engine import logs
from finetune_operator.engine.controller import Controller
from finetune_operator.engine.event_recorder import EventRecorder
from finetune_operator.engine.health import Health
from finetune_operator.engine.kinds import resource
from finetune_operator.engine.kube_client import KubeClient
from finetune_operator.engine.leader_election import LeaderElection, Timing
from finetune_operator.engine.metrics import Metrics
from finetune_operator.settings import parse

from hack.cluster.apiserver import ControlPlane
from tests.api.engine import toy

CONCURRENCY = 16
LEASE = Timing(lease_duration=600, renew_deadline=500)
CRDS = Path(__file__).resolve().parents[2] / "crds"


async def main(jobs: int) -> None:
    """Print the times of both runs for `jobs` jobs, alternating to cancel drift."""
    logs.configure("text", "warning")
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {platform.machine()}, {os.cpu_count()} CPUs")
    with tempfile.TemporaryDirectory() as folder, ControlPlane(Path(folder)) as plane:
        plane.kubectl("apply", "--server-side", "-f", CRDS)
        plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        cluster = await KubeClient.connect(str(plane.kubeconfig))
        await _bare(cluster, "warm-up", 50)
        for number in range(3):
            bare = await _bare(cluster, f"bare-{number}", jobs)
            burst, latency = await _engine(cluster, f"engine-{number}", jobs)
            print(
                f"{jobs} jobs: bare loop {bare:.2f} s, engine {burst:.2f} s, ratio "
                f"{burst / bare:.2f}; one job alone, create to status: p50 {latency * 1000:.0f} ms"
            )
        await cluster.close()


async def _bare(cluster: KubeClient, namespace: str, jobs: int) -> float:
    await _namespace(cluster, namespace)
    made = await _create_jobs(cluster, namespace, jobs)
    events = EventRecorder(cluster, "bench", lambda: datetime.now(UTC))
    about = EventRecord("Normal", "Preparing", "The data is being prepared")

    async def one(job: Manifest) -> None:
        await cluster.create(toy.config_map(job))
        await cluster.create(toy.batch_job(job))
        metadata = job["metadata"]
        patch = {
            "metadata": {"resourceVersion": metadata["resourceVersion"]},
            "status": toy.status("Preparing"),
        }
        await cluster.patch("FineTuneJob", namespace, metadata["name"], patch, "status")
        await events.record(job, about)

    started = time.perf_counter()
    await _at_most(CONCURRENCY, [partial(one, job) for job in made])
    return time.perf_counter() - started


async def _engine(cluster: KubeClient, namespace: str, jobs: int) -> tuple[float, float]:
    await _namespace(cluster, namespace)
    await _create_jobs(cluster, namespace, jobs)  # before the engine runs, as in the bare loop
    images = ["--trainer-image=a", "--serving-image=b"]
    options = parse([*images, f"--workers={CONCURRENCY}", f"--namespace={namespace}"], {})
    election = LeaderElection(cluster, namespace, "lease", options.identity, LEASE)
    await election.acquire()
    metrics, stop = Metrics(), asyncio.Event()
    engine = Controller(
        cluster, options, toy.build_controllers(options.settings), metrics, Health(), election
    )
    started = time.perf_counter()
    run = asyncio.create_task(engine.run(stop, lambda: None))
    await _until_prepared(engine, namespace, jobs)
    took = time.perf_counter() - started
    alone = sorted([await _alone(cluster, engine, namespace, f"alone-{n}") for n in range(21)])
    stop.set()
    await run
    return took, alone[len(alone) // 2]


async def _alone(cluster: KubeClient, engine: Controller, namespace: str, name: str) -> float:
    started = time.perf_counter()
    await cluster.create(toy.finetune_job(namespace, name))
    while not _has_phase(engine.cache.get("FineTuneJob", namespace, name)):
        await asyncio.sleep(0.001)
    return time.perf_counter() - started


async def _until_prepared(engine: Controller, namespace: str, jobs: int) -> None:
    """The cache holds a phase only once the API server has answered its write."""
    async with asyncio.timeout(300):
        while True:
            found = engine.cache.list("FineTuneJob", namespace)
            if (
                len(found) == jobs
                and all(_has_phase(each) for each in found)
                and engine.queue.is_idle
            ):
                return
            await asyncio.sleep(0.01)


def _has_phase(job: Manifest | None) -> bool:
    """Whether the operator has written the status, which every object has by default."""
    return "phase" in ((job or {}).get("status") or {})


async def _namespace(cluster: KubeClient, name: str) -> None:
    # Nothing of the operator makes namespaces, so its table of kinds has none.
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    await cluster._request("POST", "/api/v1/namespaces", {}, manifest)


async def _create_jobs(cluster: KubeClient, namespace: str, jobs: int) -> list[Manifest]:
    manifests = [toy.finetune_job(namespace, f"job-{number}") for number in range(jobs)]
    await _at_most(CONCURRENCY, [partial(cluster.create, each) for each in manifests])
    return (await cluster.list(resource("FineTuneJob"), namespace))[0]


async def _at_most(limit: int, calls: list[Callable[[], Awaitable[object]]]) -> None:
    free = asyncio.Semaphore(limit)

    async def one(call: Callable[[], Awaitable[object]]) -> None:
        async with free:
            await call()

    await asyncio.gather(*(one(call) for call in calls))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 300))
