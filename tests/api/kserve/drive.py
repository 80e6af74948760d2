"""The operator's engine without its watches: it lists and reconciles when it is told to.

Everything but the watch is the real thing: client, cache, reconciler, HTTP requests. So a
test can write something, let the operator look, and know that it has seen it.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

from finetune_operator.controllers import build_controllers
from finetune_operator.decision import Key, Settings
from finetune_operator.engine.cache import Cache
from finetune_operator.engine.event_handlers import EventHandlers
from finetune_operator.engine.event_recorder import EventRecorder
from finetune_operator.engine.http_poller import HttpPoller
from finetune_operator.engine.kube_client import KubeClient
from finetune_operator.engine.metrics import Metrics
from finetune_operator.engine.reconciler import Reconciler
from finetune_operator.engine.relist import Relister
from finetune_operator.engine.workqueue import WorkQueue
from finetune_operator.engine.writer import Writer

SETTINGS = Settings(trainer_image="trainer:v1", serving_image="vllm:v1")
ANSWER_SECONDS = 10.0
LOOKS = 20


class Operator:
    """One operator for one namespace."""

    def __init__(self, cluster: KubeClient, namespace: str) -> None:
        self.namespace = namespace
        self.ahead = timedelta()
        """How much the operator's clock is ahead."""
        self._cluster = cluster
        self._answered = asyncio.Event()
        metrics = Metrics()
        self._queue = WorkQueue(metrics.queue)
        self._http_poller = HttpPoller(lambda _key: self._answered.set())
        self._cache = Cache(self._http_poller.responses)
        controllers = build_controllers(SETTINGS)
        event_handlers = EventHandlers(self._cache, self._queue, controllers, metrics.handovers)
        self._relister = Relister(cluster, self._cache, event_handlers, metrics, (namespace,))
        writer = Writer(
            cluster, self._cache, event_handlers, metrics, lambda: True, _confirm_leadership
        )
        self._reconciler = Reconciler(
            controllers,
            self._cache,
            self._queue,
            event_handlers,
            writer,
            self._http_poller,
            EventRecorder(cluster, "test", self._now),
            metrics,
            self._now,
        )

    @classmethod
    async def start(cls, kubeconfig: Path, namespace: str) -> Operator:
        """Connect to an API server."""
        return cls(await KubeClient.connect(str(kubeconfig)), namespace)

    async def stop(self) -> None:
        """Give everything back."""
        await self._http_poller.close()
        await self._cluster.close()

    async def look(self, name: str) -> None:
        """See all that there is, and act until there is nothing left to do but wait."""
        for _ in range(LOOKS):
            before = await self._list(name)
            await self._reconciler.reconcile(Key("ModelEndpoint", self.namespace, name))
            if await self._list(name) == before:
                return
        raise AssertionError("the operator never comes to rest")

    async def examine(self, name: str) -> None:
        """Let the pods answer, and look again, until no revision is being checked."""
        async with asyncio.timeout(ANSWER_SECONDS):
            while self._checking(name):
                await self._answered.wait()
                self._answered.clear()
                await self.look(name)

    def _checking(self, name: str) -> bool:
        found = self._cache.get("ModelEndpoint", self.namespace, name) or {}
        revisions = found.get("status", {}).get("revisions", [])
        return any(each["state"] == "Checking" for each in revisions)

    async def _list(self, name: str) -> str:
        await self._relister.list_initially(await self._relister.discover_kinds())
        found = self._cache.get("ModelEndpoint", self.namespace, name)
        assert found is not None
        versions = [
            each["metadata"]["resourceVersion"]
            for kind in ("ModelEndpoint", "InferenceService", "ServingRuntime", "Service")
            for each in self._cache.list(kind, self.namespace)
        ]
        return ",".join(versions)

    def _now(self) -> datetime:
        return datetime.now(UTC) + self.ahead


async def _confirm_leadership() -> bool:
    return True
