"""A Lease that is edited or deleted by hand: never two leaders, and never no leader for long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest
from finetune_operator.engine.kube_client import KubeClient
from finetune_operator.engine.leader_election import (
    MAX_LEASE_DURATION,
    LeaderElection,
    LeadershipLost,
    Timing,
)

from hack.cluster.apiserver import ControlPlane
from tests.api.client import Api
from tests.api.engine.whole import until

NAME = "edited"
QUICK = Timing(lease_duration=4, renew_deadline=3, renew_interval=0.2, retry_interval=0.1)
"""Long enough that a machine that stalls for a second or two does not lose the Lease."""
Candidate = Callable[..., LeaderElection]


@pytest.fixture
async def candidate(control_plane: ControlPlane, namespace: str) -> AsyncIterator[Candidate]:
    """Candidates for one Lease, over one connection."""
    client = await KubeClient.connect(str(control_plane.kubeconfig))
    yield lambda name, **more: LeaderElection(client, namespace, NAME, name, QUICK, **more)
    await client.close()


def lease(namespace: str, **spec: object) -> dict[str, object]:
    metadata = {"namespace": namespace, "name": NAME}
    kind = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
    return {**kind, "metadata": metadata, "spec": spec}


async def test_a_lease_with_a_duration_of_a_year_is_taken_after_a_minute(
    candidate: Candidate, api: Api, namespace: str
) -> None:
    year, far = 31_536_000, "2999-01-01T00:00:00.000000Z"
    api.create(lease(namespace, holderIdentity="?", leaseDurationSeconds=year, renewTime=far))
    started = time.monotonic()

    def fast_clock() -> float:
        return time.monotonic() * 100

    async with asyncio.timeout(30):
        await candidate("a", clock=fast_clock).acquire()

    assert time.monotonic() - started > MAX_LEASE_DURATION / 100
    assert api.get("Lease", namespace, NAME)["spec"]["leaseDurationSeconds"] == QUICK.lease_duration


@pytest.mark.parametrize("spec", [{"leaseDurationSeconds": None}, {"leaseDurationSeconds": 10**6}])
async def test_a_leader_whose_lease_is_edited_stays_the_only_one(
    candidate: Candidate, api: Api, namespace: str, spec: dict[str, object]
) -> None:
    leader = candidate("a")
    await leader.acquire()
    api.patch("Lease", namespace, NAME, {"spec": spec})
    other = asyncio.create_task(candidate("b").acquire())
    renewal = asyncio.create_task(leader.renew())

    await asyncio.wait({other, renewal}, timeout=2 * QUICK.lease_duration)

    assert not other.done()
    assert not renewal.done()
    assert api.get("Lease", namespace, NAME)["spec"]["leaseDurationSeconds"] == QUICK.lease_duration
    for each in (other, renewal):
        each.cancel()
        with suppress(asyncio.CancelledError):
            await each


async def test_a_leader_whose_lease_is_deleted_creates_it_again(
    candidate: Candidate, api: Api, namespace: str
) -> None:
    leader = candidate("a")
    await leader.acquire()
    api.delete("Lease", namespace, NAME)
    renewal = asyncio.create_task(leader.renew())

    def is_held() -> bool:
        found = [each for each in api.list("Lease", namespace) if each["metadata"]["name"] == NAME]
        return bool(found and found[0]["spec"]["holderIdentity"] == "a")

    await until("the lease exists again", is_held, QUICK.lease_duration)
    assert leader.is_leader()
    assert not renewal.done()
    renewal.cancel()
    with suppress(asyncio.CancelledError):
        await renewal


@pytest.mark.parametrize("spec", [{}, {"holderIdentity": "b", "leaseDurationSeconds": 2}])
async def test_a_leader_yields_to_another_process_that_created_the_lease_again(
    candidate: Candidate, api: Api, namespace: str, spec: dict[str, object]
) -> None:
    leader = candidate("a")
    await leader.acquire()
    api.delete("Lease", namespace, NAME)
    api.create(lease(namespace, **spec))

    with pytest.raises(LeadershipLost, match="leads now"):
        await asyncio.wait_for(leader.renew(), 2 * QUICK.lease_duration)
    assert not leader.is_leader()


async def test_a_candidate_whose_answer_was_lost_leads_at_once(
    candidate: Candidate, api: Api, namespace: str
) -> None:
    api.create(lease(namespace, holderIdentity="a", leaseDurationSeconds=3600))
    async with asyncio.timeout(QUICK.lease_duration):
        await candidate("a").acquire()
