"""The operator's engine without its watches: it lists and reconciles when a test calls it.

Client, cache, reconciler and HTTP requests are the real ones. So a test can write an object, let
the operator reconcile, and rely on the operator having read it.
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
RESPONSE_TIMEOUT_SECONDS = 10.0
MAX_RECONCILES = 20


class Operator:
    """One operator for one namespace."""

    def __init__(self, cluster: KubeClient, namespace: str) -> None:
        self.namespace = namespace
        self.ahead = timedelta()
        """By how much the operator's clock is ahead."""
        self._cluster = cluster
        self._responded = asyncio.Event()
        metrics = Metrics()
        self._queue = WorkQueue(metrics.queue)
        self._http_poller = HttpPoller(cluster, lambda _key: self._responded.set())
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
        """Close the connections to the API server and to the pods."""
        await self._http_poller.close()
        await self._cluster.close()

    async def settle(self, name: str) -> None:
        """List and reconcile until the operator writes nothing more."""
        for _ in range(MAX_RECONCILES):
            before = await self._relist(name)
            await self._reconciler.reconcile(Key("ModelEndpoint", self.namespace, name))
            if await self._relist(name) == before:
                return
        raise AssertionError("the operator never stops writing")

    async def finish_checks(self, name: str) -> None:
        """Wait for responses of the pods and reconcile, until no revision is being checked."""
        async with asyncio.timeout(RESPONSE_TIMEOUT_SECONDS):
            while self._is_checking(name):
                await self._responded.wait()
                self._responded.clear()
                await self.settle(name)

    def _is_checking(self, name: str) -> bool:
        found = self._cache.get("ModelEndpoint", self.namespace, name) or {}
        revisions = found.get("status", {}).get("revisions", [])
        return any(each["state"] == "Checking" for each in revisions)

    async def _relist(self, name: str) -> str:
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
