"""One operator's connection to the API server: the interface of engine/kube_client.py, with faults.

A call can be refused, can get lost before or after it took effect, can hang, or can be the last
thing that the process ever did.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from finetune_operator.decision import Manifest, ObjectRef
from finetune_operator.engine.kinds import Resource
from finetune_operator.engine.kube_client import Conflict, Unavailable
from finetune_operator.names import JANITOR

from tests.sim.clock import Clock
from tests.sim.server import ApiServer
from tests.sim.watch import selected

T = TypeVar("T")
FaultKind = Literal[
    "crash before", "crash after", "answer lost", "refused", "too many", "conflict", "slow", "late"
]
FAULTS: tuple[FaultKind, ...] = (
    "crash before",
    "crash after",
    "answer lost",
    "refused",
    "too many",
    "conflict",
    "slow",
    "late",
)


class Crash(BaseException):
    """The process ends here; nothing of the program may catch it."""


class Pause(Awaitable[None]):
    """Suspends the coroutine for a number of seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __await__(self) -> Generator[float, None, None]:
        yield self.seconds


@dataclass
class Fault:
    """What happens to one of the next calls."""

    kind: FaultKind
    calls: int
    """Writes that succeed before it."""
    seconds: float = 0.0


class Port:
    """A KubeClient for one operator process."""

    def __init__(self, server: ApiServer, clock: Clock, met: Callable[[str], None]) -> None:
        self._server = server
        self._clock = clock
        self._met = met
        self.fault: Fault | None = None
        self.down_until = 0.0
        self.writes = 0
        """Writes about a job or an endpoint; those about the workspace's janitor do not count."""

    async def get(self, kind: str, namespace: str, name: str) -> Manifest:
        """One object."""
        self.reach()
        return self._server.get(kind, namespace, name)

    async def list(
        self, of: Resource, namespace: str = "", selector: str = ""
    ) -> tuple[list[Manifest], str]:
        """All objects of a kind that match the selector, and the version of the list."""
        self.reach()
        items = [
            each
            for each in self._server.list(of.kind, namespace)
            if selected(each, selector or of.selector)
        ]
        return items, str(self._server.version)

    async def list_events(self, namespace: str, uid: str, reason: str) -> Sequence[Manifest]:
        """The events about an object that have a reason."""
        self.reach()
        return [
            each
            for each in self._server.list("Event", namespace)
            if (each["involvedObject"]["uid"], each["reason"]) == (uid, reason)
        ]

    async def create(self, manifest: Manifest) -> Manifest:
        """POST."""
        return await self._write(lambda: self._server.create(manifest), _counts(manifest))

    async def apply(self, manifest: Manifest) -> Manifest:
        """Server-side apply."""
        return await self._write(lambda: self._server.apply(manifest), _counts(manifest))

    async def replace(self, manifest: Manifest) -> Manifest:
        """PUT."""
        return await self._write(lambda: self._server.replace(manifest))

    async def patch(
        self, kind: str, namespace: str, name: str, patch: Any, subresource: str = ""
    ) -> Manifest:
        """Merge-patch."""
        return await self._write(
            lambda: self._server.patch(kind, namespace, name, patch, subresource),
            kind in ("FineTuneJob", "ModelEndpoint", "Event"),
            patch=True,
        )

    async def delete(self, ref: ObjectRef) -> Manifest:
        """Delete in the background."""
        return await self._write(
            lambda: self._server.delete(ref.kind, ref.namespace, ref.name, uid=ref.uid),
            ref.name != JANITOR,
        )

    def reach(self) -> None:
        """Raise Unavailable while the API server is unreachable."""
        if self._clock.now < self.down_until:
            self._met("call while the API server was down")
            raise Unavailable("connection refused")

    async def _write(self, do: Callable[[], T], counts: bool = True, patch: bool = False) -> T:
        self.reach()
        self.writes += counts
        fault = self.fault
        if fault is None:
            return do()
        fault.calls -= 1
        if fault.calls >= 0:
            return do()
        self.fault = None
        return await self._suffer(fault, do, patch)

    async def _suffer(self, fault: Fault, do: Callable[[], T], patch: bool) -> T:
        self._met(f"call: {fault.kind}")
        match fault.kind:
            case "crash before":
                raise Crash
            case "crash after":
                do()
                raise Crash
            case "answer lost":
                do()
                raise Unavailable("no answer within 15 s")
            case "refused":
                raise Unavailable("500 etcdserver: request timed out")
            case "too many":
                raise Unavailable("429 too many requests", retry_after=min(fault.seconds, 30.0))
            case "conflict":
                if patch:
                    raise Conflict("409 the object has been modified")
                raise Unavailable("409 please try again")
            case "slow":
                await Pause(min(fault.seconds, 15.0))
                return do()
            case "late":
                made = do()
                await Pause(min(fault.seconds, 15.0))
                return made


def _counts(manifest: Manifest) -> bool:
    return manifest["metadata"]["name"] != JANITOR and manifest["kind"] != "PersistentVolumeClaim"
