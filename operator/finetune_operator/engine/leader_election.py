"""Leader election: one operator at a time, by a coordination.k8s.io Lease.

The rules are client-go's: a candidate takes the Lease when it has not seen the holder renew it for
the Lease's duration, measured by the candidate's own clock; a leader that could not renew for a
shorter time stops by itself. The durations are short, so that a second replica takes over in
seconds, and status writes carry resourceVersions (`writer`) in case both ever believe that they
lead. The Kubernetes client's own election has no deadlines, compares wall clocks and cannot release
the Lease.
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
    """Seconds. Two leaders at once are impossible because
    lease_duration > renew_deadline > renew_interval."""

    lease_duration: int = 8
    renew_deadline: float = 6.0
    renew_interval: float = 2.5
    retry_interval: float = 1.0
    request_timeout: float = 2.0


TIMING = Timing()
MAX_LEASE_DURATION = 60.0
"""Seconds of a Lease's duration that a candidate respects; this operator never writes more, so a
longer one was edited by hand."""


class LeadershipLost(Exception):
    """Another process leads, or the Lease could not be renewed in time."""


class LeaderElection:
    """One candidate for one Lease."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        name: str,
        identity: str,
        timing: Timing = TIMING,
        clock: Callable[[], float] = steady,
    ) -> None:
        self.identity = identity
        self._client = client
        self._namespace = namespace
        self._name = name
        self._timing = timing
        self._clock = clock
        self._written: Manifest | None = None  # the Lease as this process last wrote it
        self._observed: tuple[str, float] | None = None  # the holder's version, and since when
        self._newest_version = 0
        self._valid_until = float("-inf")

    def is_leader(self) -> bool:
        """Whether no other candidate can have taken the Lease yet."""
        return self._clock() < self._valid_until

    async def confirm_leadership(self) -> bool:
        """Whether the Lease at the API server names this process as its holder."""
        spec = (await self._get_lease()).get("spec") or {}
        return bool(spec.get("holderIdentity") == self.identity)

    async def acquire(self) -> bool:
        """Wait until this process leads; always True."""
        while not await self._attempt(self._try_acquire):
            await asyncio.sleep(self._timing.retry_interval)
        log.info("Became the leader", extra={"identity": self.identity})
        return True

    async def renew(self) -> None:
        """Renew the Lease until cancelled; raises LeadershipLost when that fails for too long."""
        renewed = self._clock()
        while True:
            await asyncio.sleep(self._timing.renew_interval if self.is_leader() else 0)
            while not await self._attempt(self._try_renew):
                if self._clock() - renewed > self._timing.renew_deadline:
                    raise LeadershipLost(
                        f"the lease was not renewed for {self._timing.renew_deadline:g} s"
                    )
                await asyncio.sleep(self._timing.retry_interval / 2)
            renewed = self._clock()

    async def release(self) -> None:
        """Let another candidate take over at once."""
        if self._written is None or not self.is_leader():
            return
        self._valid_until = float("-inf")
        spec = {**self._written["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
        try:
            await self._client.replace(
                {**self._written, "spec": spec}, self._timing.request_timeout
            )
        except ApiError as error:
            log.warning("Cannot release the lease", extra={"error": str(error)})

    async def _attempt(self, step: Callable[[], Any]) -> bool:
        try:
            return bool(await step())
        except (Conflict, AlreadyExists):
            return False  # another candidate was faster
        except ApiError as error:
            extra = {"lease": f"{self._namespace}/{self._name}", "error": str(error)}
            log.warning("Cannot read or write the lease, retrying", extra=extra)
            return False

    async def _try_acquire(self) -> bool:
        started = self._clock()
        try:
            lease = await self._get_lease()
        except NotFound:
            return self._record_lease(await self._create_lease(), started)
        if not self._is_available(lease):
            return False
        return await self._replace_lease(lease, self._new_spec(lease.get("spec") or {}), started)

    async def _try_renew(self) -> bool:
        started = self._clock()
        try:
            lease = self._written or await self._get_lease()
        except NotFound:  # it was deleted; the candidate that creates it first leads
            lease = await self._create_lease()
        spec = lease.get("spec") or {}
        if spec.get("holderIdentity") != self.identity:
            self._valid_until = float("-inf")
            raise LeadershipLost(f"{spec.get('holderIdentity') or 'no process'} leads now")
        if version_number(lease) < self._newest_version:
            raise LeadershipLost(
                "the API server has an older lease than before: it was restored from a backup, and"
                " events that this process has seen may never have happened"
            )
        renewed = {"renewTime": _now(), "leaseDurationSeconds": self._timing.lease_duration}
        try:
            return await self._replace_lease(lease, {**spec, **renewed}, started)
        except ApiError:
            # Another client wrote it, or we did and the answer was lost: read it again.
            self._written = None
            raise

    def _is_available(self, lease: Manifest) -> bool:
        """Whether it has no holder, or its holder was not seen to renew it for its duration."""
        spec = lease.get("spec") or {}
        if spec.get("holderIdentity") in (None, "", self.identity):  # ours: the answer was lost
            return True
        version, now = lease["metadata"]["resourceVersion"], self._clock()
        if self._observed is None or self._observed[0] != version:
            self._observed = version, now
        duration = min(float(spec.get("leaseDurationSeconds") or 0), MAX_LEASE_DURATION)
        return now - self._observed[1] > max(duration, self._timing.lease_duration)

    async def _replace_lease(self, lease: Manifest, spec: Manifest, started: float) -> bool:
        desired = {**lease, "spec": spec}
        written = await self._client.replace(desired, self._timing.request_timeout)
        return self._record_lease(written, started)

    def _record_lease(self, lease: Manifest, started: float) -> bool:
        self._written = lease
        self._newest_version = version_number(lease)
        # From before the request was sent: other candidates count from after it was written.
        self._valid_until = started + self._timing.lease_duration
        return True

    async def _create_lease(self) -> Manifest:
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"namespace": self._namespace, "name": self._name},
            "spec": self._new_spec({}),
        }
        return await self._with_timeout(self._client.create(lease))

    def _new_spec(self, old: Manifest) -> Manifest:
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self._timing.lease_duration,
            "acquireTime": _now(),
            "renewTime": _now(),
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + bool(old),
        }

    async def _get_lease(self) -> Manifest:
        return await self._with_timeout(self._client.get("Lease", self._namespace, self._name))

    async def _with_timeout(self, call: Any) -> Manifest:
        try:
            async with asyncio.timeout(self._timing.request_timeout):
                found: Manifest = await call
                return found
        except TimeoutError:
            raise ApiError(f"no answer within {self._timing.request_timeout:g} s") from None


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
