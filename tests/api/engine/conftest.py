"""One reconciler on the real API server, whose cache holds only what the test lists into it."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Literal

import pytest
from finetune_operator.controllers import keys_of
from finetune_operator.decision import ControllerTable, Decision, Key, Reconcile, View
from finetune_operator.engine import logs
from finetune_operator.engine.cache import Cache
from finetune_operator.engine.event_handlers import EventHandlers
from finetune_operator.engine.event_recorder import EventRecorder
from finetune_operator.engine.http_poller import HttpPoller
from finetune_operator.engine.kinds import WATCHED
from finetune_operator.engine.kube_client import KubeClient
from finetune_operator.engine.metrics import Metrics
from finetune_operator.engine.reconciler import Reconciler
from finetune_operator.engine.relist import Relister
from finetune_operator.engine.workqueue import WorkQueue
from finetune_operator.engine.writer import Writer
from finetune_operator.jobs.plan import build_rejected_job_status

from hack.cluster.apiserver import ControlPlane
from tests.api.client import Api
from tests.api.conftest import CRDS, started


class Bench:
    """A reconciler with all its parts, none of which runs by itself."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self.client = client
        self.namespace = namespace
        self.metrics = Metrics()
        self.is_leader: Callable[[], bool] = lambda: True
        self.holds_lease = True
        self._function: Reconcile = lambda _key, _view, _now: None
        self._http_pollers: list[HttpPoller] = []
        self.forget_everything()

    async def confirm_leadership(self) -> bool:
        """Whether the Lease at the API server names this process."""
        return self.holds_lease

    async def close(self) -> None:
        """Close the connections."""
        for each in self._http_pollers:
            await each.close()
        await self.client.close()

    def forget_everything(self) -> None:
        """As after a restart of the process."""
        self.queue = WorkQueue(self.metrics.queue)
        self.cache = Cache()
        controllers = ControllerTable(
            reconcile=dict.fromkeys(("FineTuneJob", "Workspace"), self._call_function),
            on_rejected={"FineTuneJob": build_rejected_job_status},
            keys_of=keys_of,
        )
        event_handlers = EventHandlers(self.cache, self.queue, controllers, self.metrics.handovers)
        self._relister = Relister(
            self.client, self.cache, event_handlers, self.metrics, [self.namespace]
        )
        writer = Writer(
            self.client,
            self.cache,
            event_handlers,
            self.metrics,
            lambda: self.is_leader(),
            self.confirm_leadership,
        )
        self._http_pollers.append(HttpPoller(self.client, self.queue.add))
        self._reconciler = Reconciler(
            controllers,
            self.cache,
            self.queue,
            event_handlers,
            writer,
            self._http_pollers[-1],
            EventRecorder(self.client, "test", lambda: datetime.now(UTC)),
            self.metrics,
            lambda: datetime.now(UTC),
        )

    async def list(self, *kinds: str) -> None:
        """List these kinds, or all, into the cache."""
        for each in WATCHED:
            if not each.is_optional and (not kinds or each.kind in kinds):
                await self._relister.relist(each)

    def _call_function(self, key: Key, view: View, now: datetime) -> Decision | None:
        return self._function(key, view, now)

    async def reconcile(
        self,
        function: Reconcile,
        name: str,
        kind: Literal["FineTuneJob", "Workspace"] = "FineTuneJob",
    ) -> str:
        """Reconcile one key once with this function; the result as the metrics count it."""
        before = self.results()
        self._function = function
        await self._reconciler.reconcile(Key(kind, self.namespace, name))
        after = self.results()
        return next(each for each in after if after[each] != before.get(each))

    async def drain(self) -> list[Key]:
        """The keys that are due now, removed from the queue."""
        keys: list[Key] = []
        while self.queue.depth and (key := await self.queue.get()):
            self.queue.done(key)
            keys.append(key)
        return keys

    def results(self) -> dict[str, float]:
        """Reconciles by result."""
        return _by_label(self.metrics.reconciles, "result")

    def writes(self) -> dict[str, float]:
        """Successful writes by verb, without events."""
        counts: dict[str, float] = {}
        for sample in _samples(self.metrics.writes):
            if sample.labels["result"] == "ok" and sample.labels["kind"] != "Event":
                counts[sample.labels["verb"]] = counts.get(sample.labels["verb"], 0) + sample.value
        return counts


@pytest.fixture
async def bench(control_plane: ControlPlane, namespace: str) -> AsyncIterator[Bench]:
    """A reconciler that serves the test's own namespace."""
    client = await KubeClient.connect(str(control_plane.kubeconfig))
    bench = Bench(client, namespace)
    yield bench
    await bench.close()
    await asyncio.sleep(0)  # the transport closes its sockets


@pytest.fixture(scope="module")
def thread() -> Iterator[ThreadPoolExecutor]:
    """The thread that starts API servers: the kernel kills them when it ends, not the process."""
    with ThreadPoolExecutor(1) as thread:
        yield thread


@pytest.fixture(scope="module")
def own_plane(
    tmp_path_factory: pytest.TempPathFactory, thread: ThreadPoolExecutor
) -> Iterator[ControlPlane]:
    """An API server that the tests of one module may restart."""
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
    """What an operator process would have logged, as text."""
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
