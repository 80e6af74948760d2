"""Event recorder: Kubernetes events about our objects, as `kubectl describe` shows them.

An event that repeats increments the count of the one Event object, at most every few seconds.
`reconciler` sends the events of a decision here. If an event cannot be written, that is logged and
nothing else happens: no decision depends on an event.
"""

import logging
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from finetune_operator.decision import MANAGER, EventRecord, Manifest
from finetune_operator.engine.kube_client import ApiError, KubeClient, NotFound
from finetune_operator.manifest import format_time

MAX_SERIES = 4096
UPDATE_INTERVAL_SECONDS = 10.0
MESSAGE_LIMIT = 1024

log = logging.getLogger(__name__)


@dataclass
class _Series:
    name: str
    count: int
    written: datetime


class EventRecorder:
    """Writes the events of one operator process."""

    def __init__(self, client: KubeClient, instance: str, clock: Callable[[], datetime]) -> None:
        self._client = client
        self._instance = instance
        self._clock = clock
        self._series: OrderedDict[tuple[str, EventRecord], _Series] = OrderedDict()

    async def record(self, about: Manifest, event: EventRecord) -> None:
        """Create the event, or increment its count if this process created it before."""
        key = about["metadata"]["uid"], event
        now = self._clock()
        series = self._series.get(key)
        try:
            if series is None:
                self._remember(key, await self._create(about, event, now))
                return
            series.count += 1
            if (now - series.written).total_seconds() >= UPDATE_INTERVAL_SECONDS:
                await self._update_count(about, series, now)
        except NotFound:  # the API server deletes events after an hour
            self._series.pop(key, None)
        except ApiError as error:
            extra = {"reason": event.reason, "error": str(error)}
            log.warning("Cannot write an event", extra=extra)

    def _remember(self, key: tuple[str, EventRecord], series: _Series) -> None:
        self._series[key] = series
        while len(self._series) > MAX_SERIES:
            self._series.popitem(last=False)

    async def _update_count(self, about: Manifest, series: _Series, now: datetime) -> None:
        patch = {"count": series.count, "lastTimestamp": format_time(now)}
        await self._client.patch("Event", _namespace_of(about), series.name, patch)
        series.written = now

    async def _create(self, about: Manifest, event: EventRecord, now: datetime) -> _Series:
        metadata = about["metadata"]
        name = f"{metadata['name']}.{uuid.uuid4().hex[:16]}"
        place = {key: metadata[key] for key in ("namespace", "name", "uid") if key in metadata}
        await self._client.create(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": name, "namespace": _namespace_of(about)},
                "involvedObject": {
                    "apiVersion": about["apiVersion"],
                    "kind": about["kind"],
                    **place,
                },
                "type": event.type,
                "reason": event.reason,
                "message": event.message[:MESSAGE_LIMIT],
                "source": {"component": MANAGER},
                "reportingComponent": MANAGER,
                "reportingInstance": self._instance[:128],
                "firstTimestamp": format_time(now),
                "lastTimestamp": format_time(now),
                "count": 1,
            }
        )
        return _Series(name, 1, now)


def _namespace_of(about: Manifest) -> str:
    """Where the events about an object are; for a cluster-scoped one the API server accepts only
    `default`, and `kubectl describe` looks there."""
    return str(about["metadata"].get("namespace") or "default")
