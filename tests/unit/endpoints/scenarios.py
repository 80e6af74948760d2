"""Scenarios that several tests begin with."""

from __future__ import annotations

from tests.unit.endpoints.world import World


def start_pods() -> World:
    """A new endpoint whose revision 1 has a pod that is not scheduled yet."""
    world = World()
    world.settle()
    world.add_pods(1)
    return world


def start_checks() -> World:
    """A new endpoint whose revision 1 is ready and about to be checked."""
    world = World()
    world.settle()
    world.make_pods_ready(1)
    return world


def answer_checks(world: World, answer: str) -> None:
    """Let the pods give this answer to every probe until the operator sends no more requests."""
    for _ in range(6):
        world.settle()
        world.answer_requests(answer=answer)
    world.settle()


def repair_profile(world: World) -> None:
    change = {"spec": {"hostMemoryPerDevice": "8Gi"}}
    world.change("AcceleratorProfile", "cpu", change, namespace="")
