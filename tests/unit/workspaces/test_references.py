"""When the time begins for which an artifact is retained, and how a user ends it."""

from __future__ import annotations

import pytest
from finetune_operator.decision import Manifest
from finetune_operator.workspaces.plan import (
    AFTER_FAILURE,
    FIRST_AFTER,
    PERIOD,
    RECHECK,
    RELEASE_ANNOTATION,
    REPEAT_AFTER,
    SPACING,
    STUCK_AFTER,
)

from tests.unit.jobs.world import World
from tests.unit.workspaces.world import (
    JANITOR,
    OLD,
    OLD_URI,
    add_endpoint,
    clean,
    fresh,
    janitor,
    kept,
    reconcile,
)


def unfinished(world: World) -> Manifest:
    """The janitor as it was before it ended."""
    found = janitor(world)
    assert found is not None
    return {key: value for key, value in found.items() if key != "status"}


def drop_reference(world: World, outcome: str) -> None:
    """An endpoint takes an artifact and drops it between two janitors; the next one ends."""
    clean(world)
    add_endpoint(world, OLD_URI)
    reconcile(world)
    world.remove("ModelEndpoint", "bot")
    world.tick(SPACING.total_seconds())
    assert reconcile(world).delete
    clean(world, outcome)
    assert f"+{OLD}" in kept(world), "an earlier janitor may have marked it"


def test_a_reference_that_ended_between_two_janitors_is_listed_once() -> None:
    world = fresh()
    drop_reference(world, "Complete")
    world.tick(REPEAT_AFTER.total_seconds())
    assert reconcile(world).delete
    clean(world)
    assert f"+{OLD}" not in kept(world)


@pytest.mark.parametrize("outcome", ["Failed", None])
def test_a_reference_that_a_failed_janitor_has_not_recorded_is_listed_again(
    outcome: str | None,
) -> None:
    world = fresh()
    drop_reference(world, outcome or "Complete")
    if outcome is None:
        world.load(unfinished(world))
    world.tick(max(AFTER_FAILURE, STUCK_AFTER).total_seconds())
    assert reconcile(world).delete
    clean(world)
    assert f"+{OLD}" in kept(world)


def test_a_reference_is_listed_again_when_a_user_deletes_the_failed_janitor() -> None:
    world = fresh()
    drop_reference(world, "Failed")
    world.remove("Job", JANITOR)
    clean(world)
    assert f"+{OLD}" in kept(world)


def release(world: World, *uris: str) -> None:
    """The user ends the retention of these artifacts."""
    claim = world.need("PersistentVolumeClaim", "finetune-workspace")
    world.patch(claim, {"metadata": {"annotations": {RELEASE_ANNOTATION: " ".join(uris)}}})


def test_a_released_artifact_triggers_two_janitors_that_may_remove_it() -> None:
    world = fresh()
    clean(world)
    release(world, OLD_URI, "pvc://elsewhere/artifacts/a-00000000", "oops")
    for wait in (SPACING, REPEAT_AFTER):
        world.tick(wait.total_seconds())
        assert reconcile(world).delete
        clean(world)
        assert {entry for entry in kept(world) if entry.startswith("-")} == {f"-{OLD}"}
    assert reconcile(world).requeue_after == PERIOD.total_seconds()
    release(world)
    assert reconcile(world).requeue_after == PERIOD.total_seconds()


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://finetune-workspace/{OLD}",
        f"pvc://elsewhere/{OLD}",
        f"{OLD_URI}/adapter",
        f"{OLD_URI}/../x",
        "pvc://finetune-workspace/artifacts",
        f"pvc://finetune-workspace/{OLD.upper()}",
        OLD,
    ],
)
def test_only_the_exact_address_of_an_artifact_releases_it(uri: str) -> None:
    world = fresh()
    release(world, uri)
    reconcile(world)
    assert not [entry for entry in kept(world) if entry == f"-{OLD}"]
    release(world, f"{OLD_URI}/")
    assert reconcile(world).requeue_after == RECHECK
    world.end_job(JANITOR, "Complete")
    world.tick(SPACING.total_seconds())
    assert reconcile(world).delete


def test_a_release_alone_does_not_hurry_the_first_janitor() -> None:
    world = World()
    world.settle()
    release(world, OLD_URI)
    assert reconcile(world).requeue_after == FIRST_AFTER.total_seconds()


def test_a_released_artifact_that_an_endpoint_serves_is_kept() -> None:
    world = fresh()
    add_endpoint(world, OLD_URI)
    release(world, OLD_URI)
    reconcile(world)
    assert {OLD, f"-{OLD}"} <= kept(world), "the janitor keeps what is in both"
