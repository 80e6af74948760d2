"""The controller: the parts of the engine put together, in the process that leads.

It fills the cache (`relist`), then runs watches (`watch`), workers (`workqueue`) and periodic
relists until `main` stops it. It ends after the running reconciles, or with the error of the first
part that failed: no part survives another, because a new process is easier to reason about than one
that works in part.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from finetune_operator.decision import ControllerTable
from finetune_operator.engine.cache import Cache
from finetune_operator.engine.event_handlers import EventHandlers
from finetune_operator.engine.event_recorder import EventRecorder
from finetune_operator.engine.health import Health
from finetune_operator.engine.http_poller import HttpPoller
from finetune_operator.engine.kinds import Resource
from finetune_operator.engine.kube_client import ApiError, KubeClient
from finetune_operator.engine.leader_election import LeaderElection
from finetune_operator.engine.metrics import Metrics
from finetune_operator.engine.reconciler import Reconciler
from finetune_operator.engine.relist import Relister
from finetune_operator.engine.watch import LeaseWatch, run_watches
from finetune_operator.engine.workqueue import WorkQueue, run_workers
from finetune_operator.engine.writer import Writer
from finetune_operator.settings import Options

DRAIN_SECONDS = 10.0
DISCOVERY_PERIOD = 30.0
WATCH_RETRY = 1.0
ECHO_GAP_SECONDS = 10.0
"""Time between two renewals of our Lease after which the watch may have been interrupted."""

log = logging.getLogger(__name__)
T = TypeVar("T")


class Controller:
    """Everything between the API server and the reconcile functions."""

    def __init__(
        self,
        client: KubeClient,
        options: Options,
        controllers: ControllerTable,
        metrics: Metrics,
        health: Health,
        leader_election: LeaderElection,
    ) -> None:
        self._client = client
        self._options = options
        self._controllers = controllers
        self._health = health
        self.queue = WorkQueue(metrics.queue)
        self.http_poller = HttpPoller(client, self.queue.add)
        self.cache = Cache(self.http_poller.responses)
        self._event_handlers = EventHandlers(self.cache, self.queue, controllers, metrics.handovers)
        self.relister = Relister(
            client,
            self.cache,
            self._event_handlers,
            metrics,
            options.namespaces,
            lease_namespace=options.lease_namespace,
        )
        writer = Writer(
            client,
            self.cache,
            self._event_handlers,
            metrics,
            leader_election.is_leader,
            leader_election.confirm_leadership,
        )
        self._reconciler = Reconciler(
            controllers,
            self.cache,
            self.queue,
            self._event_handlers,
            writer,
            self.http_poller,
            EventRecorder(client, options.identity, client.clock.now),
            metrics,
            client.clock.now,
        )
        metrics.export_jobs_by_phase(lambda: self.cache.list("FineTuneJob"))
        metrics.export_watch_age(health.echo_age)
        metrics.queue.longest_running.set_function(self.queue.longest_running)

    async def run(self, stop: asyncio.Event, on_watch_start: Callable[[], None]) -> None:
        """Run until `stop` is set. Calls `on_watch_start` whenever kopf has replaced the signal
        handlers."""
        self._health.set_leading()
        kinds = await self._fill_cache(stop)
        if kinds is None:
            return
        workers = asyncio.create_task(
            run_workers(self.queue, self._reconciler.reconcile, self._options.workers),
            name="workers",
        )
        parts = {
            workers,
            asyncio.create_task(self._watch(kinds, on_watch_start), name="watch"),
            asyncio.create_task(stop.wait(), name="stop"),
        }
        self._health.expect_echoes()
        self._health.set_synced()
        log.info("Cache complete, starting workers", extra={"workers": self._options.workers})
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            self.queue.close()
            await _drain_workers(workers)
            await self.http_poller.close()
            for part in parts:
                part.cancel()
            await asyncio.wait(parts, timeout=6)

    async def _fill_cache(self, stop: asyncio.Event) -> tuple[Resource, ...] | None:
        """The kinds that the cache holds now; None if `stop` was set first."""

        async def list_kinds() -> tuple[Resource, ...]:
            kinds = await self._discover_kinds()
            await self.relister.list_initially(kinds)
            return kinds

        kinds = await run_unless_stopped(stop, list_kinds())
        if kinds is not None:
            for key in self._controllers.initial_keys(self.cache):
                self.queue.add(key)
        return kinds

    async def _discover_kinds(self) -> tuple[Resource, ...]:
        while True:
            try:
                return await self.relister.discover_kinds()
            except ApiError as error:
                extra = {"error": str(error)}
                log.warning("Cannot discover the served kinds, retrying", extra=extra)
                await asyncio.sleep(WATCH_RETRY)

    async def _watch(self, kinds: tuple[Resource, ...], on_watch_start: Callable[[], None]) -> None:
        """Watch; restart when a watch fails, or when optional kinds or namespaces come or go."""
        while True:
            tasks = [
                asyncio.create_task(each)
                for each in (
                    self._watch_until_failure(kinds, on_watch_start),
                    self._wait_for_other_kinds(kinds),
                )
            ]
            relists = asyncio.create_task(self.relister.relist_periodically(kinds))
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    each.exception()
            finally:
                for each in (*tasks, relists):
                    each.cancel()
                await asyncio.wait({*tasks, relists}, timeout=6)
            kinds = await self._discover_kinds()
            await self.relister.list_initially(kinds)
            for kind in ("FineTuneJob", "ModelEndpoint"):
                for found in self.cache.list(kind):
                    self._event_handlers.enqueue_keys_of(found)

    async def _watch_until_failure(
        self, kinds: tuple[Resource, ...], on_watch_start: Callable[[], None]
    ) -> None:
        lease = LeaseWatch(
            self._options.lease_name,
            self._options.lease_namespace,
            self._options.identity,
            self._on_echo,
        )
        try:
            await run_watches(
                self._client,
                kinds,
                self.relister.namespaces,
                self._event_handlers,
                self.relister.request_relist,
                on_watch_start,
                lease,
            )
        except Exception as error:
            log.error("A watch failed, restarting all watches", extra={"error": repr(error)})
            await asyncio.sleep(WATCH_RETRY)

    async def _wait_for_other_kinds(self, kinds: tuple[Resource, ...]) -> None:
        """Return once there are other kinds or namespaces to watch than those being watched."""
        while True:
            await asyncio.sleep(DISCOVERY_PERIOD)
            served = await self._discover_kinds()
            if served != kinds:
                extra = {"served_kinds": [each.kind for each in served]}
                log.info("The served kinds changed", extra=extra)
                return
            if namespace := await self.relister.find_listable_namespace(kinds):
                log.info("A namespace can be listed again", extra={"namespace": namespace})
                return

    def _on_echo(self) -> None:
        if self._health.record_echo() > ECHO_GAP_SECONDS:
            self.relister.request_relist()


async def run_unless_stopped(stop: asyncio.Event, call: Coroutine[Any, Any, T]) -> T | None:
    """What the call returns, or None if `stop` was set first."""
    stopped, called = asyncio.create_task(stop.wait()), asyncio.create_task(call)
    try:
        await asyncio.wait({stopped, called}, return_when=asyncio.FIRST_COMPLETED)
        return called.result() if called.done() else None
    finally:
        stopped.cancel()
        called.cancel()
        await asyncio.wait({stopped, called})


async def _drain_workers(workers: asyncio.Task[None]) -> None:
    """Give running reconciles some time to end, then cancel them."""
    _, pending = await asyncio.wait({workers}, timeout=DRAIN_SECONDS)
    if pending:
        extra = {"drain_seconds": DRAIN_SECONDS}
        log.warning("Cancelling reconciles that did not end in time", extra=extra)
        workers.cancel()
        await asyncio.wait({workers}, timeout=2)
