"""A Lease that somebody edits or deletes: never two leaders, and never none for long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest
from finetune_operator.engine.kube_client import KubeClient
from finetune_operator.engine.leader_election import LONGEST, LeaderElection, LeadershipLost, Timing

from hack.cluster.apiserver import ControlPlane
from tests.api.client import Api
from tests.api.engine.whole import until

NAME = "edited"
QUICK = Timing(duration=4, deadline=3, renew=0.2, retry=0.1)
"""A machine that stands still for a second or two has lost no Lease."""
Candidate = Callable[..., LeaderElection]


@pytest.fixture
async def candidate(control_plane: ControlPlane, namespace: str) -> AsyncIterator[Candidate]:
    """Candidates for one Lease, over one connection."""
    cluster = await KubeClient.connect(str(control_plane.kubeconfig))
    yield lambda name, **more: LeaderElection(cluster, namespace, NAME, name, QUICK, **more)
    await cluster.close()


def lease(namespace: str, **spec: object) -> dict[str, object]:
    metadata = {"namespace": namespace, "name": NAME}
    kind = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
    return {**kind, "metadata": metadata, "spec": spec}


async def test_a_lease_that_asks_for_years_is_taken_in_a_minute(
    candidate: Candidate, api: Api, namespace: str
) -> None:
    year, far = 31_536_000, "2999-01-01T00:00:00.000000Z"
    api.create(lease(namespace, holderIdentity="?", leaseDurationSeconds=year, renewTime=far))
    begun = time.monotonic()

    def fast() -> float:
        return time.monotonic() * 100

    async with asyncio.timeout(30):
        await candidate("a", clock=fast).acquire()

    assert time.monotonic() - begun > LONGEST / 100
    assert api.get("Lease", namespace, NAME)["spec"]["leaseDurationSeconds"] == QUICK.duration


@pytest.mark.parametrize("spec", [{"leaseDurationSeconds": None}, {"leaseDurationSeconds": 10**6}])
async def test_a_leader_whose_lease_is_edited_stays_the_only_one(
    candidate: Candidate, api: Api, namespace: str, spec: dict[str, object]
) -> None:
    leader = candidate("a")
    await leader.acquire()
    api.patch("Lease", namespace, NAME, {"spec": spec})
    other = asyncio.create_task(candidate("b").acquire())
    hold = asyncio.create_task(leader.hold())

    await asyncio.wait({other, hold}, timeout=2 * QUICK.duration)

    assert not other.done()
    assert not hold.done()
    assert api.get("Lease", namespace, NAME)["spec"]["leaseDurationSeconds"] == QUICK.duration
    for each in (other, hold):
        each.cancel()
        with suppress(asyncio.CancelledError):
            await each


async def test_a_leader_whose_lease_is_deleted_makes_it_anew(
    candidate: Candidate, api: Api, namespace: str
) -> None:
    leader = candidate("a")
    await leader.acquire()
    api.delete("Lease", namespace, NAME)
    hold = asyncio.create_task(leader.hold())

    def held() -> bool:
        found = [each for each in api.list("Lease", namespace) if each["metadata"]["name"] == NAME]
        return bool(found and found[0]["spec"]["holderIdentity"] == "a")

    await until("the lease is there again", held, QUICK.duration)
    assert leader.leads()
    assert not hold.done()
    hold.cancel()
    with suppress(asyncio.CancelledError):
        await hold


@pytest.mark.parametrize("spec", [{}, {"holderIdentity": "b", "leaseDurationSeconds": 2}])
async def test_a_leader_gives_way_to_whoever_made_the_lease_anew(
    candidate: Candidate, api: Api, namespace: str, spec: dict[str, object]
) -> None:
    leader = candidate("a")
    await leader.acquire()
    api.delete("Lease", namespace, NAME)
    api.create(lease(namespace, **spec))

    with pytest.raises(LeadershipLost, match="leads now"):
        await asyncio.wait_for(leader.hold(), 2 * QUICK.duration)
    assert not leader.leads()


async def test_a_candidate_whose_answer_was_lost_leads_at_once(
    candidate: Candidate, api: Api, namespace: str
) -> None:
    api.create(lease(namespace, holderIdentity="a", leaseDurationSeconds=3600))
    async with asyncio.timeout(QUICK.duration):
        await candidate("a").acquire()
