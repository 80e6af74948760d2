"""Relists: full lists fill the cache, and repair it when a watch has missed an event.

No reconcile starts before the first list of every kind is complete. Later lists are needed because
a watch that had to restart does not report what was deleted meanwhile. They run every few minutes,
and at once when there is a sign that a watch was interrupted. Like watches, they pass every object
to `event_handlers`.

If the administrator named the namespaces to serve, one that the operator may not list must not stop
the others: deleting a namespace also deletes the operator's Role in it. Such a namespace is left
out until the operator may list it again.
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
DEBOUNCE = 1.0
"""Seconds to wait after a request, so that a burst of requests causes one list."""
RETRY = 2.0

log = logging.getLogger(__name__)


class Relister:
    """Keeps the cache equal to what the API server lists."""

    def __init__(
        self,
        client: KubeClient,
        cache: Cache,
        event_handlers: EventHandlers,
        metrics: Metrics,
        namespaces: Sequence[str] = (),
        lease_namespace: str = "",
    ) -> None:
        self._client = client
        self._cache = cache
        self._event_handlers = event_handlers
        self._metrics = metrics
        self._served_namespaces = tuple(namespaces)
        self._lease_namespace = lease_namespace
        self.namespaces = self._served_namespaces
        """The served namespaces that can be listed; empty when the whole cluster is served."""
        self._requested = asyncio.Event()

    async def discover_kinds(self) -> tuple[Resource, ...]:
        """The kinds to watch: all that are required, and the optional ones that the API server
        serves."""
        served: list[Resource] = []
        for each in WATCHED:
            if not each.is_optional or each.kind in await self._client.kinds_of(each):
                served.append(each)
        return tuple(served)

    async def list_initially(self, kinds: Iterable[Resource]) -> None:
        """List every kind, however long the API server or the CRDs take to appear."""
        self.namespaces = self._served_namespaces
        for each in kinds:
            for namespace in self._namespaces_of(each):
                await self._list_until_success(each, namespace)
        self._cache.set_served_kinds(frozenset((each.group, each.kind) for each in kinds))

    async def _list_until_success(self, of: Resource, namespace: str) -> None:
        while True:
            try:
                await self._list(of, namespace)
                return
            except NotFound:
                extra = {"missing": f"{of.plural}.{of.group}"}
                log.error("A kind is missing, install the chart's CRDs", extra=extra)
            except Forbidden as error:
                extra = {"resource": of.plural, "namespace": namespace, "error": str(error)}
                if namespace not in ("", self._lease_namespace):
                    self.namespaces = tuple(n for n in self.namespaces if n != namespace)
                    log.error("A namespace is left out until it can be listed", extra=extra)
                    return
                log.error("Cannot list a kind, retrying", extra=extra)
            except ApiError as error:
                extra = {"resource": of.plural, "namespace": namespace, "error": str(error)}
                log.error("Cannot list a kind, retrying", extra=extra)
            await asyncio.sleep(RETRY)

    async def find_listable_namespace(self, kinds: Iterable[Resource]) -> str | None:
        """A namespace that was left out and in which every kind can be listed by now."""
        for namespace in self._served_namespaces:
            if namespace in self.namespaces:
                continue
            try:
                for each in kinds:
                    if each.is_namespaced:
                        await self._client.list(each, namespace)
            except ApiError:
                continue
            return namespace
        return None

    async def relist(self, of: Resource) -> int:
        """List a kind and correct the cache; how many objects differed."""
        return sum([await self._list(of, namespace) for namespace in self._namespaces_of(of)])

    def _namespaces_of(self, of: Resource) -> Sequence[str]:
        return self.namespaces if of.is_namespaced and self._served_namespaces else ("",)

    async def _list(self, of: Resource, namespace: str) -> int:
        items, version = await self._client.list(of, namespace)
        differed = sum([self._event_handlers.on_update(item) for item in items])
        listed_uids = {item["metadata"]["uid"] for item in items}
        for absent in self._cache.find_absent(of.kind, namespace or None, listed_uids, version):
            differed += self._event_handlers.on_delete(absent)
        return differed

    def request_relist(self) -> None:
        """A watch may have missed an event: relist soon."""
        self._requested.set()

    async def relist_periodically(self, kinds: Sequence[Resource]) -> None:
        """Relist every few minutes, and when requested, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(PERIOD * random.uniform(0.9, 1.1)):
                    await self._requested.wait()
                await asyncio.sleep(DEBOUNCE)
            except TimeoutError:
                pass
            self._requested.clear()
            await self._relist_all(kinds)

    async def _relist_all(self, kinds: Sequence[Resource]) -> None:
        for each in kinds:
            try:
                differed = await self.relist(each)
            except ApiError as error:
                extra = {"resource": each.plural, "error": str(error)}
                log.warning("Cannot relist a kind", extra=extra)
                continue
            if differed:
                self._metrics.repairs.labels(each.kind).inc(differed)
                log.info(
                    "A relist corrected the cache",
                    extra={"resource": each.plural, "objects": differed},
                )
