"""A revision that crashes is tried again, as a new one, a few times."""

from __future__ import annotations

from tests.unit.endpoints.scenarios import repair_profile
from tests.unit.endpoints.world import World, artifact, profile


def crash(world: World, number: int) -> None:
    """The server of a revision crashes for the third time."""
    (name,) = world.add_pods(number)
    world.set_container(name, restarts=3, running={})
    world.settle()


def test_a_revision_that_crashes_is_tried_again_three_times() -> None:
    world = World()
    world.settle()
    for number, minutes in ((1, 1), (2, 4), (3, 16)):
        crash(world, number)
        assert world.states()[number] == "Failed"
        assert world.names("Deployment") == []
        assert world.requeue_after == 60 * minutes
        assert f"; next try at {world.time(60 * minutes)}" in world.status["message"]
        assert world.condition("Reconciling") == ("True", "CrashLoop")
        assert world.condition("Stalled")[0] == "False"
        world.tick(60 * minutes - 1)
        world.restart()
        world.settle()
        assert world.names("Deployment") == []
        world.tick(1)
        world.settle()
        assert world.names("Deployment") == [f"glossary-r{number + 1}"]
    crash(world, 4)
    assert world.condition("Stalled") == ("True", "CrashLoop")
    assert world.status["phase"] == "Failed"
    assert world.status["message"].endswith("; 4 failures in a row")
    assert world.requeue_after is None
    world.tick(86400)
    world.settle()
    assert world.states() == {1: "Failed", 2: "Failed", 3: "Failed", 4: "Failed"}
    failures = [event for event in world.events if event.reason == "RevisionFailed"]
    assert len(failures) == 4


def test_a_retry_that_passes_takes_the_traffic() -> None:
    world = World()
    world.roll_out()
    world.edit(artifact=artifact("b"))
    world.settle()
    crash(world, 2)
    assert world.selected_app() == "glossary-r1"
    world.tick(60)
    world.roll_out(3)
    assert world.states() == {1: "Retired", 2: "Failed", 3: "Active"}
    assert world.selected_app() == "glossary-r3"


def test_after_a_repair_the_failures_before_do_not_count() -> None:
    world = World()
    world.settle()
    crash(world, 1)
    repair_profile(world)
    world.settle()
    assert world.names("Deployment") == ["glossary-r2"], "at once"
    crash(world, 2)
    assert world.requeue_after == 60


def test_a_retry_waits_for_a_profile_that_is_gone() -> None:
    world = World()
    world.settle()
    crash(world, 1)
    world.remove("AcceleratorProfile", "cpu")
    world.tick(60)
    world.settle()
    assert world.condition("Stalled") == ("True", "ProfileNotFound")
    world.load(profile())
    world.settle()
    assert world.names("Deployment") == ["glossary-r2"]
