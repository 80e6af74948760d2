"""One reconciler on the real API server, whose cache knows only what the test has it list."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Literal

import pytest
from finetune_operator.decision import Decision, Key, View
from finetune_operator.engine import logs
from finetune_operator.engine.cache import Cache
from finetune_operator.engine.event_handlers import EventHandlers
from finetune_operator.engine.event_recorder import EventRecorder
from finetune_operator.engine.http_poller import HttpPoller
from finetune_operator.engine.kinds import WATCHED
from finetune_operator.engine.kube_client import KubeClient
from finetune_operator.engine.metrics import Metrics
from finetune_operator.engine.reconciler import Plan, Reconciler
from finetune_operator.engine.relist import Relister
from finetune_operator.engine.workqueue import WorkQueue
from finetune_operator.jobs.plan import refused_job

from hack.cluster.apiserver import ControlPlane
from tests.api.client import Api
from tests.api.conftest import CRDS, started


class Bench:
    """A reconciler with everything around it, but nothing that runs by itself."""

    def __init__(self, cluster: KubeClient, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.metrics = Metrics()
        self.leads: Callable[[], bool] = lambda: True
        self.confirmed = True
        self._plan: Plan = lambda _key, _view, _now: None
        self._asks: list[HttpPoller] = []
        self.forget_everything()

    async def confirm(self) -> bool:
        """What the Lease at the API server says."""
        return self.confirmed

    async def close(self) -> None:
        """Give back what was opened."""
        for each in self._asks:
            await each.close()
        await self.cluster.close()

    def forget_everything(self) -> None:
        """As after a restart of the process."""
        self.queue = WorkQueue(self.metrics.queue)
        self.cache = Cache()
        self._intake = EventHandlers(self.cache, self.queue, self.metrics.handovers)
        self._sync = Relister(
            self.cluster, self.cache, self._intake, self.metrics, [self.namespace]
        )
        self._asks.append(HttpPoller(self.queue.add))
        self._reconciler = Reconciler(
            self.cluster,
            self.cache,
            self._intake,
            self.queue,
            dict.fromkeys(("FineTuneJob", "Workspace"), self._planned),
            self._asks[-1],
            EventRecorder(self.cluster, "test", lambda: datetime.now(UTC)),
            self.metrics,
            lambda: self.leads(),
            lambda: datetime.now(UTC),
            {"FineTuneJob": refused_job},
            self.confirm,
        )

    async def list(self, *kinds: str) -> None:
        """Have the cache see the API server as it is now."""
        for each in WATCHED:
            if not each.optional and (not kinds or each.kind in kinds):
                await self._sync.list(each)

    def _planned(self, key: Key, view: View, now: datetime) -> Decision | None:
        return self._plan(key, view, now)

    async def reconcile(
        self, plan: Plan, name: str, kind: Literal["FineTuneJob", "Workspace"] = "FineTuneJob"
    ) -> str:
        """Run one key once; the result."""
        before = self.results()
        self._plan = plan
        await self._reconciler.run(Key(kind, self.namespace, name))
        after = self.results()
        return next(each for each in after if after[each] != before.get(each))

    async def drain(self) -> list[Key]:
        """The keys that are due now, taken off the queue."""
        keys: list[Key] = []
        while self.queue.depth and (key := await self.queue.take()):
            self.queue.done(key)
            keys.append(key)
        return keys

    def results(self) -> dict[str, float]:
        """How often a reconcile ended how."""
        return _by_label(self.metrics.reconciles, "result")

    def writes(self) -> dict[str, float]:
        """Writes that succeeded, by verb."""
        counts: dict[str, float] = {}
        for sample in _samples(self.metrics.writes):
            if sample.labels["result"] == "ok" and sample.labels["kind"] != "Event":
                counts[sample.labels["verb"]] = counts.get(sample.labels["verb"], 0) + sample.value
        return counts


@pytest.fixture
async def bench(control_plane: ControlPlane, namespace: str) -> AsyncIterator[Bench]:
    """A reconciler that serves the test's own namespace."""
    cluster = await KubeClient.connect(str(control_plane.kubeconfig))
    bench = Bench(cluster, namespace)
    yield bench
    await bench.close()
    await asyncio.sleep(0)  # lets the transport close its sockets


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


def _by_label(counter: Any, label: str) -> dict[str, float]:
    return {sample.labels[label]: sample.value for sample in _samples(counter)}


def _samples(counter: Any) -> list[Any]:
    return [each for each in next(iter(counter.collect())).samples if each.name.endswith("_total")]
