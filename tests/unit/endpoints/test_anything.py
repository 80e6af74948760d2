"""Whatever happens in whatever order: what must always hold, and where it must end."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.endpoints.world import NAME, NAMESPACE, Crash, World, artifact

LOST = {"reason": "Error", "exitCode": 1, "message": "ValueError: no"}


def _newest(world: World) -> int | None:
    numbers = [int(name.rpartition("-r")[2]) for name in world.names("Deployment")]
    return max(numbers, default=None)


def _on_newest(action: Callable[[World, int], None]) -> Callable[[World], None]:
    def act(world: World) -> None:
        newest = _newest(world)
        if newest is not None:
            action(world, newest)

    return act


def _comes_up(world: World, number: int) -> None:
    world.pods_are_ready(number, 2)
    for _ in range(4):
        world.settle()
        world.answer_asks()


def _crash(world: World, number: int) -> None:
    (name,) = world.pods_appear(number)
    world.container_is(name, restarts=3, running={}, last=LOST)
    world.pod_is(name, ready=False)


def _remove_service(world: World) -> None:
    if world.get("Service", NAME):
        world.remove("Service", NAME)


def _cut_short(world: World) -> None:
    world.crash_after = world.writes + 1
    try:
        world.reconcile()
    except Crash:
        world.restart()
    world.crash_after = None


ACTIONS: dict[str, Callable[[World], None]] = {
    "artifact a": lambda world: world.edit(artifact=artifact("a")),
    "artifact b": lambda world: world.edit(artifact=artifact("b")),
    "two replicas": lambda world: world.edit(replicas=2),
    "one replica": lambda world: world.edit(replicas=1),
    "ready": _on_newest(lambda world, number: world.pods_are_ready(number, 2)),
    "comes up": _on_newest(_comes_up),
    "right answer": lambda world: world.answer_asks(),
    "wrong answer": lambda world: world.answer_asks(answer="Wrong."),
    "silence": lambda world: world.answer_asks(error="timed out"),
    "crashes": _on_newest(_crash),
    "deployment deleted": _on_newest(
        lambda world, number: world.remove("Deployment", f"{NAME}-r{number}")
    ),
    "service deleted": _remove_service,
    "operator ends between two writes": _cut_short,
    "operator restarts": lambda world: world.restart(),
    "a minute": lambda world: world.later(60),
    "look": lambda world: world.settle(),
}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(sorted(ACTIONS)), max_size=40))
def test_traffic_goes_only_to_what_answered_and_it_always_ends_well(story: list[str]) -> None:
    world = World()
    proven: set[str] = set()
    highest = 0
    for action in story:
        ACTIONS[action](world)
        world.reconcile()
        revisions = world.status["revisions"]
        proven |= {f"{NAME}-r{each['revision']}" for each in revisions if each.get("readyAt")}
        assert world.selected() is None or world.selected() in proven
        assert sum(each["state"] == "Active" for each in revisions) <= 1
        assert max(each["revision"] for each in revisions) >= highest, "numbers never come back"
        highest = max(each["revision"] for each in revisions)
    world.edit(artifact=artifact("f"), replicas=1)
    world.settle()
    world.restart()
    last = _newest(world)
    assert last is not None
    world.rolled_out(last)
    world.later(60)
    world.settle()
    assert world.names("Deployment") == [f"{NAME}-r{last}"]
    assert world.selected() == f"{NAME}-r{last}"
    assert {pod["metadata"]["labels"]["app"] for pod in world.cache.list("Pod", NAMESPACE)} == {
        f"{NAME}-r{last}"
    }
