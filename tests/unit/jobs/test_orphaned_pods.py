"""Pods whose Job was deleted without them: `kubectl delete job --cascade=orphan`.

No controller ends them, and the operator may not delete pods.
"""

from __future__ import annotations

from finetune_operator.decision import Manifest

from tests.unit.jobs.world import World, recover, result, training


def orphaned() -> tuple[World, list[Manifest]]:
    """Training whose Job was deleted without its pods, which run on."""
    world, pods = training()
    world.remove("Job", "glossary-train-1")
    for pod in pods:
        world.patch(pod, {"metadata": {"ownerReferences": None}})
    world.settle()
    return world, pods


def test_they_train_on_and_their_result_counts() -> None:
    world, pods = orphaned()
    recover(world, 600)
    assert world.status["phase"] == "Training"
    assert world.names("Job") == ["glossary-prepare-1"]
    for pod in pods:
        world.end_pod(pod, 0, result("train"))
    world.settle()
    assert "glossary-evaluate-1" in world.names("Job")


def test_the_next_attempt_waits_for_them_and_the_status_names_them() -> None:
    world, pods = orphaned()
    world.end_pod(pods[0], 1)
    world.settle()
    recover(world, 600)
    name = pods[1]["metadata"]["name"]
    stalled = world.condition("Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "PodsOrphaned")
    assert stalled["message"] == (
        f"pod {name} was left when its Job was deleted without it, and would run alongside train "
        f"2; the job continues when it has ended: kubectl delete pod {name}"
    )
    assert "glossary-train-2" not in world.names("Job")
    world.remove_pod(pods[1])
    world.settle()
    assert world.condition("Stalled")["status"] == "False"
    assert "glossary-train-2" in world.names("Job")


def test_one_on_a_dead_node_that_was_deleted_is_not_waited_for() -> None:
    world, pods = orphaned()
    world.end_pod(pods[0], 1)
    world.mark_deleted(pods[1], grace=30)
    world.settle()
    recover(world, 30)
    assert "glossary-train-2" not in world.names("Job")
    recover(world, 60)
    assert "glossary-train-2" in world.names("Job")
