"""The leader's work, put together: lists and watches in, workers in the middle, writes out.

Only the process that holds the Lease runs this. It ends when it is asked to, after the running
reconciles are through, or with the error of the first part that failed: the parts do not survive
each other, a new process is cheaper to reason about than a half-dead one.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from finetune_operator.engine.cache import Cache
from finetune_operator.engine.event_handlers import EventHandlers
from finetune_operator.engine.event_recorder import EventRecorder
from finetune_operator.engine.health import Health
from finetune_operator.engine.http_poller import HttpPoller
from finetune_operator.engine.kinds import Resource
from finetune_operator.engine.kube_client import ApiError, KubeClient
from finetune_operator.engine.leader_election import LeaderElection
from finetune_operator.engine.metrics import Metrics
from finetune_operator.engine.reconciler import Controllers, Reconciler, finish
from finetune_operator.engine.relist import Relister
from finetune_operator.engine.watch import LeaseWatch, watch
from finetune_operator.engine.workqueue import WorkQueue, work
from finetune_operator.settings import Options

DRAIN_SECONDS = 10.0
DISCOVERY_PERIOD = 30.0
WATCH_RETRY = 1.0
SILENCE = 10.0
"""Seconds without an echo after which a watch may have been interrupted."""

log = logging.getLogger(__name__)
T = TypeVar("T")


class Controller:
    """Everything between the API server and the plans of one product."""

    def __init__(
        self,
        cluster: KubeClient,
        options: Options,
        product: Controllers,
        metrics: Metrics,
        health: Health,
        election: LeaderElection,
    ) -> None:
        self._cluster = cluster
        self._options = options
        self._product = product
        self._health = health
        self._election = election
        self.queue = WorkQueue(metrics.queue)
        self.asks = HttpPoller(self.queue.add)
        self.cache = Cache(self.asks.answers)
        self._intake = EventHandlers(self.cache, self.queue, metrics.handovers, product.on_deleted)
        self.sync = Relister(
            cluster,
            self.cache,
            self._intake,
            metrics,
            options.namespaces,
            lease_namespace=options.lease_namespace,
        )
        self._reconciler = Reconciler(
            cluster,
            self.cache,
            self._intake,
            self.queue,
            product.plans,
            self.asks,
            EventRecorder(cluster, options.identity, cluster.clock.now),
            metrics,
            election.leads,
            cluster.clock.now,
            product.refused,
            election.confirm,
        )
        metrics.jobs(lambda: self.cache.list("FineTuneJob"))
        metrics.watch_age(health.echo_age)
        metrics.queue.longest.set_function(self.queue.longest_running)

    async def run(self, stop: asyncio.Event, started: Callable[[], None]) -> None:
        """Work until `stop` is set. `started` is called whenever kopf took the signals."""
        self._health.leading()
        kinds = await self._first(stop)
        if kinds is None:
            return
        workers = asyncio.create_task(
            work(self.queue, self._reconciler.run, self._options.workers), name="workers"
        )
        parts = {
            workers,
            asyncio.create_task(self._watch(kinds, started), name="watch"),
            asyncio.create_task(stop.wait(), name="stop"),
        }
        self._health.watching()
        self._health.synced()
        log.info("cache complete, working with %d workers", self._options.workers)
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            self.queue.close()
            await finish(workers, DRAIN_SECONDS)
            await self.asks.close()
            for part in parts:
                part.cancel()
            await asyncio.wait(parts, timeout=6)

    async def _first(self, stop: asyncio.Event) -> tuple[Resource, ...] | None:
        kinds = await unless(stop, self._served())
        if kinds is None or await unless(stop, self._listed(kinds)) is None:
            return None
        for key in self._product.initial_keys(self.cache):
            self.queue.add(key)
        return kinds

    async def _listed(self, kinds: tuple[Resource, ...]) -> bool:
        await self.sync.first(kinds)
        return True

    async def _served(self) -> tuple[Resource, ...]:
        while True:
            try:
                return await self.sync.served()
            except ApiError as error:
                log.warning("cannot ask which kinds there are: %s", error)
                await asyncio.sleep(WATCH_RETRY)

    async def _watch(self, kinds: tuple[Resource, ...], started: Callable[[], None]) -> None:
        """Watch, and start anew when a watch fails, or optional kinds or namespaces come or go."""
        while True:
            tasks = [
                asyncio.create_task(each)
                for each in (self._watch_once(kinds, started), self._other_kinds(kinds))
            ]
            repairs = asyncio.create_task(self.sync.repair(kinds))
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    each.exception()
            finally:
                for each in (*tasks, repairs):
                    each.cancel()
                await asyncio.wait({*tasks, repairs}, timeout=6)
            kinds = await self._served()
            await self.sync.first(kinds)
            for kind in ("FineTuneJob", "ModelEndpoint"):
                for found in self.cache.list(kind):
                    self._intake.wake(found)

    async def _watch_once(self, kinds: tuple[Resource, ...], started: Callable[[], None]) -> None:
        lease = LeaseWatch(
            self._options.lease_name,
            self._options.lease_namespace,
            self._options.identity,
            self._echoed,
        )
        try:
            await watch(
                self._cluster,
                kinds,
                self.sync.namespaces,
                self._intake,
                self.sync.request,
                started,
                lease,
            )
        except Exception as error:
            log.error("watching failed, starting anew: %r", error)
            await asyncio.sleep(WATCH_RETRY)

    async def _other_kinds(self, kinds: tuple[Resource, ...]) -> None:
        """Return once there are other kinds or namespaces to watch than those that are watched."""
        while True:
            await asyncio.sleep(DISCOVERY_PERIOD)
            served = await self._served()
            if served != kinds:
                log.info("now served: %s", ", ".join(each.kind for each in served))
                return
            if namespace := await self.sync.readmitted(kinds):
                log.info("namespace %s lets us in", namespace)
                return

    def _echoed(self) -> None:
        if self._health.echoed() > SILENCE:
            self.sync.request()


async def unless(stop: asyncio.Event, call: Coroutine[Any, Any, T]) -> T | None:
    """What the call returns, or None if `stop` was set first."""
    stopped, called = asyncio.create_task(stop.wait()), asyncio.create_task(call)
    try:
        await asyncio.wait({stopped, called}, return_when=asyncio.FIRST_COMPLETED)
        return called.result() if called.done() else None
    finally:
        stopped.cancel()
        called.cancel()
        await asyncio.wait({stopped, called})
