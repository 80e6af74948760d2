"""What must hold at every moment of a random sequence of actions, and how each must end."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.endpoints.world import (
    NAME,
    NAMESPACE,
    Crash,
    World,
    artifact,
    exporting_job,
    following,
)

ERROR = {"reason": "Error", "exitCode": 1, "message": "ValueError: no"}


def _newest(world: World) -> int | None:
    numbers = [int(name.rpartition("-r")[2]) for name in world.names("Deployment")]
    return max(numbers, default=None)


def _on_newest(action: Callable[[World, int], None]) -> Callable[[World], None]:
    def act(world: World) -> None:
        newest = _newest(world)
        if newest is not None:
            action(world, newest)

    return act


def _start(world: World, number: int) -> None:
    world.make_pods_ready(number, 2)
    for _ in range(4):
        world.settle()
        world.answer_requests()


def _crash(world: World, number: int) -> None:
    (name,) = world.add_pods(number)
    world.set_container(name, restarts=3, running={}, last=ERROR)
    world.set_pod_ready(name, ready=False)


def _remove_service(world: World) -> None:
    if world.find("Service", NAME):
        world.remove("Service", NAME)


def _crash_operator(world: World) -> None:
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
    "pods ready": _on_newest(lambda world, number: world.make_pods_ready(number, 2)),
    "passes its checks": _on_newest(_start),
    "right answer": lambda world: world.answer_requests(),
    "wrong answer": lambda world: world.answer_requests(answer="Wrong."),
    "no answer": lambda world: world.answer_requests(error="timed out"),
    "crashes": _on_newest(_crash),
    "deployment deleted": _on_newest(
        lambda world, number: world.delete("Deployment", f"{NAME}-r{number}")
    ),
    "service deleted": _remove_service,
    "operator crashes between two writes": _crash_operator,
    "operator restarts": lambda world: world.restart(),
    "a minute": lambda world: world.tick(60),
    "reconcile": lambda world: world.settle(),
}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(sorted(ACTIONS)), max_size=40))
def test_traffic_goes_only_to_checked_revisions_and_the_roll_out_always_ends(
    story: list[str],
) -> None:
    world = World()
    checked: set[str] = set()
    highest = 0
    for action in story:
        ACTIONS[action](world)
        world.reconcile()
        revisions = world.status["revisions"]
        checked |= {f"{NAME}-r{each['revision']}" for each in revisions if each.get("readyAt")}
        assert world.selected_app() is None or world.selected_app() in checked
        assert sum(each["state"] == "Active" for each in revisions) <= 1
        assert max(each["revision"] for each in revisions) >= highest, "a number is never reused"
        highest = max(each["revision"] for each in revisions)
    world.edit(artifact=artifact("f"), replicas=1)
    world.settle()
    world.restart()
    last = _newest(world)
    assert last is not None
    world.roll_out(last)
    world.tick(60)
    world.settle()
    assert world.names("Deployment") == [f"{NAME}-r{last}"]
    assert world.selected_app() == f"{NAME}-r{last}"
    assert {pod["metadata"]["labels"]["app"] for pod in world.list("Pod", NAMESPACE)} == {
        f"{NAME}-r{last}"
    }


def _load_job(world: World, letter: str, minute: int) -> None:
    world.load(exporting_job(letter, minute))


def _delete_jobs(world: World) -> None:
    for name in world.names("FineTuneJob"):
        world.remove("FineTuneJob", name)


FOLLOWING: dict[str, Callable[[World], None]] = {
    **{
        f"job {letter}": lambda world, letter=letter, minute=minute: _load_job(
            world, letter, minute
        )
        for minute, letter in enumerate("abc")
    },
    "jobs deleted": _delete_jobs,
    "pinned": lambda world: world.edit(artifact=artifact("d")),
    "unpinned": lambda world: world.edit(artifact=None),
    **{
        name: ACTIONS[name]
        for name in (
            "passes its checks",
            "wrong answer",
            "crashes",
            "operator crashes between two writes",
            "operator restarts",
            "a minute",
        )
    },
}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(sorted(FOLLOWING)), max_size=30))
def test_an_endpoint_that_follows_never_goes_back_to_an_older_job(story: list[str]) -> None:
    world = World(following())
    newest = ""
    for action in story:
        FOLLOWING[action](world)
        world.reconcile()
        name = (world.status.get("latest") or {"job": {"name": ""}})["job"]["name"]
        assert name >= newest
        newest = name
        revisions = world.status["revisions"]
        is_pinned = "artifact" in world.need("ModelEndpoint", NAME)["spec"]
        if revisions and revisions[-1]["state"] == "Starting" and not is_pinned:
            assert revisions[-1]["uri"].endswith(newest)
