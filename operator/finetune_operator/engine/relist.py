"""Lists: how the cache begins, and how it is repaired when a watch has missed something.

No reconcile acts before the first list of every kind is complete. Later lists exist because a
watch that had to start anew does not say what was deleted meanwhile. They run every few minutes,
and at once when there is a sign that a watch was interrupted.

Where namespaces are named, one that refuses us must not stop the others: a namespace that was
deleted took our Role with it. It is left out, and taken in again when it lets us.
"""

import asyncio
import logging
import random
from collections.abc import Iterable, Sequence

from finetune_operator.engine.cache import Cache
from finetune_operator.engine.event_handlers import EventHandlers
from finetune_operator.engine.kinds import WATCHED, Resource
from finetune_operator.engine.kube_client import ApiError, Forbidden, KubeClient, NotFound
from finetune_operator.engine.metrics import Metrics

PERIOD = 300.0
SETTLE = 1.0
"""Seconds to wait after a request, so that a burst of them is one list."""
RETRY = 2.0

log = logging.getLogger(__name__)


class Relister:
    """Keeps the cache equal to what the API server lists."""

    def __init__(
        self,
        cluster: KubeClient,
        cache: Cache,
        intake: EventHandlers,
        metrics: Metrics,
        namespaces: Sequence[str] = (),
        kinds: Sequence[Resource] = WATCHED,
        lease_namespace: str = "",
    ) -> None:
        self._cluster = cluster
        self._cache = cache
        self._intake = intake
        self._metrics = metrics
        self._served = tuple(namespaces)
        self._lease_namespace = lease_namespace
        self._kinds = tuple(kinds)
        self.namespaces = self._served
        """Those of the served namespaces that let us in; empty when all of a cluster are served."""
        self._wanted = asyncio.Event()

    async def served(self) -> tuple[Resource, ...]:
        """The kinds to watch: all that must be there, and those of the others that are."""
        present: list[Resource] = []
        for each in self._kinds:
            if not each.optional or each.kind in await self._cluster.kinds_of(each):
                present.append(each)
        return tuple(present)

    async def first(self, kinds: Iterable[Resource]) -> None:
        """List every kind, however long the API server or the CRDs take to appear."""
        self.namespaces = self._served
        for each in kinds:
            for namespace in self._spaces(each):
                await self._insist(each, namespace)
        self._cache.now_serves(frozenset((each.group, each.kind) for each in kinds))

    async def _insist(self, of: Resource, namespace: str) -> None:
        while True:
            try:
                await self._list(of, namespace)
                return
            except NotFound:
                log.error(
                    "the API server has no %s.%s; install the CRDs of the chart",
                    of.plural,
                    of.group,
                )
            except Forbidden as error:
                if namespace not in ("", self._lease_namespace):
                    self.namespaces = tuple(n for n in self.namespaces if n != namespace)
                    log.error("namespace %s is left out until it lets us in: %s", namespace, error)
                    return
                log.error("cannot list %s: %s", of.plural, error)
            except ApiError as error:
                log.error("cannot list %s: %s", of.plural, error)
            await asyncio.sleep(RETRY)

    async def readmitted(self, kinds: Iterable[Resource]) -> str | None:
        """A namespace that was left out and lets us list every kind by now."""
        for namespace in self._served:
            if namespace in self.namespaces:
                continue
            try:
                for each in kinds:
                    if each.namespaced:
                        await self._cluster.list(each, namespace)
            except ApiError:
                continue
            return namespace
        return None

    async def list(self, of: Resource) -> int:
        """List a kind and correct the cache; how many objects differed."""
        return sum([await self._list(of, namespace) for namespace in self._spaces(of)])

    def _spaces(self, of: Resource) -> Sequence[str]:
        return self.namespaces if of.namespaced and self._served else ("",)

    async def _list(self, of: Resource, namespace: str) -> int:
        items, version = await self._cluster.list(of, namespace)
        differed = sum([self._intake.changed(item) for item in items])
        listed = {item["metadata"]["uid"] for item in items}
        for gone in self._cache.absent(of.kind, namespace or None, listed, version):
            differed += self._intake.removed(gone)
        return differed

    def request(self) -> None:
        """A watch may have missed something: list soon."""
        self._wanted.set()

    async def repair(self, kinds: Sequence[Resource]) -> None:
        """List now and then, and when requested, for ever."""
        while True:
            try:
                async with asyncio.timeout(PERIOD * random.uniform(0.9, 1.1)):
                    await self._wanted.wait()
                await asyncio.sleep(SETTLE)
            except TimeoutError:
                pass
            self._wanted.clear()
            await self._repair(kinds)

    async def _repair(self, kinds: Sequence[Resource]) -> None:
        for each in kinds:
            try:
                differed = await self.list(each)
            except ApiError as error:
                log.warning("cannot list %s: %s", each.plural, error)
                continue
            if differed:
                self._metrics.repairs.labels(each.kind).inc(differed)
                log.info("a list of %s differed from the cache %d times", each.plural, differed)
