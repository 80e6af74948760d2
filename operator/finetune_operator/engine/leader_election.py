"""One operator at a time: leader election by a coordination.k8s.io Lease.

The rules are client-go's: a candidate takes the Lease when its holder has not been seen to renew
it for the Lease's duration, measured by the candidate's own clock; a leader that could not renew
for a shorter time stops by itself. The numbers are small, so that a second replica takes over in
seconds, and the status writes carry resourceVersions in case both are ever wrong about the time.
The library's own election has no deadlines, compares wall clocks and cannot release.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from finetune_operator.decision import Manifest
from finetune_operator.engine.cache import version_number
from finetune_operator.engine.kube_client import (
    AlreadyExists,
    ApiError,
    Conflict,
    KubeClient,
    NotFound,
)
from finetune_operator.engine.server_clock import steady

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timing:
    """Seconds. duration > deadline > renew is what makes two leaders at once impossible."""

    duration: int = 8
    deadline: float = 6.0
    renew: float = 2.5
    retry: float = 1.0
    request: float = 2.0


TIMING = Timing()
LONGEST = 60.0
"""Seconds for which a Lease may ask at most; one that asks for more was edited by somebody."""


class LeadershipLost(Exception):
    """Another process leads, or the Lease could not be renewed in time."""


class LeaderElection:
    """One candidate for one Lease."""

    def __init__(
        self,
        cluster: KubeClient,
        namespace: str,
        name: str,
        identity: str,
        timing: Timing = TIMING,
        clock: Callable[[], float] = steady,
    ) -> None:
        self.identity = identity
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._timing = timing
        self._clock = clock
        self._mine: Manifest | None = None
        self._seen: tuple[str, float] | None = None
        self._newest = 0
        self._valid_until = float("-inf")

    def leads(self) -> bool:
        """Whether no other candidate can have taken the Lease yet."""
        return self._clock() < self._valid_until

    async def confirm(self) -> bool:
        """Whether the API server, asked now, names this process as the holder."""
        spec = (await self._get()).get("spec") or {}
        return bool(spec.get("holderIdentity") == self.identity)

    async def acquire(self) -> bool:
        """Wait until this process leads."""
        while not await self._quietly(self._try_take):
            await asyncio.sleep(self._timing.retry)
        log.info("leading as %s", self.identity)
        return True

    async def hold(self) -> None:
        """Renew for ever; LeadershipLost when that no longer works."""
        renewed = self._clock()
        while True:
            await asyncio.sleep(self._timing.renew if self.leads() else 0)
            while not await self._quietly(self._try_renew):
                if self._clock() - renewed > self._timing.deadline:
                    raise LeadershipLost(
                        f"the lease was not renewed for {self._timing.deadline:g} s"
                    )
                await asyncio.sleep(self._timing.retry / 2)
            renewed = self._clock()

    async def release(self) -> None:
        """Let another candidate take over at once."""
        if self._mine is None or not self.leads():
            return
        self._valid_until = float("-inf")
        spec = {**self._mine["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
        try:
            await self._cluster.replace({**self._mine, "spec": spec}, self._timing.request)
        except ApiError as error:
            log.warning("the lease was not released: %s", error)

    async def _quietly(self, attempt: Callable[[], Any]) -> bool:
        try:
            return bool(await attempt())
        except (Conflict, AlreadyExists):
            return False  # somebody else was faster
        except ApiError as error:
            log.warning("lease %s/%s: %s", self._namespace, self._name, error)
            return False

    async def _try_take(self) -> bool:
        started = self._clock()
        try:
            lease = await self._get()
        except NotFound:
            return self._took(await self._make(), started)
        if not self._free(lease):
            return False
        wanted = {**lease, "spec": self._spec(lease.get("spec") or {})}
        return self._took(await self._cluster.replace(wanted, self._timing.request), started)

    async def _try_renew(self) -> bool:
        started = self._clock()
        try:
            lease = self._mine or await self._get()
        except NotFound:  # deleted by somebody; whoever makes it anew first leads
            lease = await self._make()
        spec = lease.get("spec") or {}
        if spec.get("holderIdentity") != self.identity:
            self._valid_until = float("-inf")
            raise LeadershipLost(f"{spec.get('holderIdentity') or 'nobody'} leads now")
        if version_number(lease) < self._newest:
            raise LeadershipLost(
                "the API server has an older lease than it had: it was restored from a backup, and"
                " what this process remembers may never have happened"
            )
        fresh = {"renewTime": _now(), "leaseDurationSeconds": self._timing.duration}
        wanted = {**lease, "spec": {**spec, **fresh}}
        try:
            return self._took(await self._cluster.replace(wanted, self._timing.request), started)
        except ApiError:
            self._mine = None  # written by somebody, or by us with the answer lost: read it anew
            raise

    def _free(self, lease: Manifest) -> bool:
        """Whether nobody holds it, or its holder was not seen to renew it for its duration."""
        spec = lease.get("spec") or {}
        if spec.get("holderIdentity") in (None, "", self.identity):  # ours: the answer was lost
            return True
        version, now = lease["metadata"]["resourceVersion"], self._clock()
        if self._seen is None or self._seen[0] != version:
            self._seen = version, now
        asked = min(float(spec.get("leaseDurationSeconds") or 0), LONGEST)
        return now - self._seen[1] > max(asked, self._timing.duration)

    def _took(self, lease: Manifest, started: float) -> bool:
        self._mine = lease
        self._newest = version_number(lease)
        # From before the request was sent: the others count from after it was written.
        self._valid_until = started + self._timing.duration
        return True

    async def _make(self) -> Manifest:
        fresh = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"namespace": self._namespace, "name": self._name},
            "spec": self._spec({}),
        }
        return await self._within(self._cluster.create(fresh))

    def _spec(self, old: Manifest) -> Manifest:
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self._timing.duration,
            "acquireTime": _now(),
            "renewTime": _now(),
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + bool(old),
        }

    async def _get(self) -> Manifest:
        return await self._within(self._cluster.get("Lease", self._namespace, self._name))

    async def _within(self, call: Any) -> Manifest:
        try:
            async with asyncio.timeout(self._timing.request):
                found: Manifest = await call
                return found
        except TimeoutError:
            raise ApiError(f"no answer within {self._timing.request:g} s") from None


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
