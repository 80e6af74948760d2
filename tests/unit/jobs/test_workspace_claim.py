"""The workspace's claim, before anything is launched on it."""

from typing import Any

import pytest
from finetune_operator.decision import Manifest

from tests.unit.jobs.world import World, job_manifest


def claim(world: World, *modes: str, phase: str = "Bound", **metadata: Any) -> Manifest:
    """The platform team's own claim of that name."""
    world.add_claim("finetune-workspace", phase)
    found = world.need("PersistentVolumeClaim", "finetune-workspace")
    found["spec"] = {"accessModes": list(modes)}
    found["metadata"] |= metadata
    return found


def stalled(world: World) -> str:
    world.settle()
    condition = world.condition("Stalled")
    return str(condition["reason"]) if condition["status"] == "True" else ""


def jobs(world: World) -> list[str]:
    return list(world.names("Job"))


def test_claim_that_only_one_node_mounts_stalls_a_job_on_two_before_it_begins() -> None:
    world = World()
    claim(world, "ReadWriteOnce")
    assert stalled(world) == "WorkspaceNotShared"
    assert "2 nodes" in world.status["message"]
    assert jobs(world) == []
    claim(world, "ReadWriteMany")
    assert stalled(world) == ""
    assert jobs(world) == ["glossary-prepare-1"]


def test_nodes_of_the_plan_count_before_training() -> None:
    world = World()
    claim(world, "ReadWriteMany")
    world.run_stage("prepare")
    world = without(world, "glossary-train-1")
    claim(world, "ReadWriteOnce")
    assert stalled(world) == "WorkspaceNotShared"
    assert "glossary-train-1" not in jobs(world)


def without(world: World, attempt: str) -> World:
    """As if the attempt had not been created yet."""
    for kind in ("ConfigMap", "Service", "Job"):
        if world.find(kind, attempt) is not None:
            world.remove(kind, attempt)
    stages = [s for s in world.status["stages"] if s["name"] == "prepare"]
    world.set_status(world.job, stages=stages)
    return world


@pytest.mark.parametrize("modes", [["ReadWriteOnce"], ["ReadWriteMany"], []])
def test_one_node_takes_any_claim(modes: list[str]) -> None:
    world = World(job_manifest(compute={"profile": "cpu", "nodes": 1}))
    claim(world, *modes)
    assert stalled(world) == ""


def test_claim_that_is_being_deleted_is_waited_for_and_created_again() -> None:
    world = World()
    claim(world, "ReadWriteMany", deletionTimestamp="2026-01-05T12:00:00Z")
    assert stalled(world) == "WorkspaceTerminating"
    assert jobs(world) == []
    world.remove("PersistentVolumeClaim", "finetune-workspace")
    assert stalled(world) == ""
    assert "finetune-workspace" in world.names("PersistentVolumeClaim")


def test_claim_that_is_deleted_while_the_job_runs_stops_the_next_stage_only() -> None:
    world = World()
    found = claim(world, "ReadWriteMany")
    world.settle()
    world.add_pods("glossary-prepare-1")
    world.mark_terminating(found)
    assert stalled(world) == ""
    world.succeed("prepare")
    assert stalled(world) == "WorkspaceTerminating"


def test_claim_that_lost_its_volume_is_reported() -> None:
    world = World()
    claim(world, "ReadWriteMany", phase="Lost")
    assert stalled(world) == "WorkspaceLost"
