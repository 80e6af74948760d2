"""Which node is to blame, which ones are excluded, and that no job waits indefinitely for it."""

import pytest
from finetune_api.jobstatus import NodeFailures
from finetune_operator.decision import Manifest
from finetune_operator.jobs.attempt_outcome import FailedAttempt, outcome_of
from finetune_operator.jobs.observe import observe
from finetune_operator.jobs.policies.node_exclusion import (
    MOST_NODES,
    count_failure,
    find_blamed_node,
)

from tests.unit.cluster import owner_of
from tests.unit.jobs.world import World, failed, recover, training

STALLED = "No sign of life from rank 0 on host glossary-train-1-0, after step 12."


def lose_node(world: World, pod: Manifest) -> None:
    world.mark_disrupted(pod, "DeletionByTaintManager")
    world.mark_deleted(pod, 120)


def evict(reason: str, message: str, world: World, pod: Manifest) -> None:
    world.set_status(pod, phase="Failed", reason=reason, message=message)


def stall_on_host_network(world: World, pod: Manifest) -> None:
    """There the name of a rank's host is that of its node."""
    for each in world.pods(owner_of(pod)):
        world.replace_fields(each, {"hostNetwork": True})
    message = "No sign of life from rank 0 on host node1, after step 12."
    world.end_pod(pod, 75, failed("train", "RankStalled", message=message))


BLAME = {
    "a lost node": (lose_node, "node2"),
    "a crash without a message": (lambda w, p: w.end_pod(p, 139), "node2"),
    "a rank that ended without a message": (
        lambda w, p: w.end_pod(p, 75, failed("train", "RankFailed")),
        "node2",
    ),
    "a pod that its kubelet refused": (
        lambda w, p: evict("UnexpectedAdmissionError", "no healthy devices present", w, p),
        "node2",
    ),
    "no device": (lambda w, p: w.end_pod(p, 75, failed("train", "NoDevice")), "node2"),
    "an unexpected error": (
        lambda w, p: w.end_pod(p, 75, failed("train", "InternalError")),
        "node2",
    ),
    "a stalled rank, whose host another pod names": (
        lambda w, p: w.end_pod(p, 75, failed("train", "RankStalled", message=STALLED)),
        "node1",
    ),
    "a stalled rank on the host network": (stall_on_host_network, "node1"),
    "stalled ranks on several hosts": (
        lambda w, p: w.end_pod(
            p,
            75,
            failed(
                "train",
                "RankStalled",
                message="rank 0 on host glossary-train-1-0, rank 1 on host glossary-train-1-1",
            ),
        ),
        None,
    ),
    "host memory": (lambda w, p: w.end_pod(p, 137, reason="OOMKilled"), None),
    "a rank killed for memory below a first process that lived": (
        lambda w, p: w.end_pod(p, 75, failed("train", "RankFailed"), reason="OOMKilled"),
        None,
    ),
    "a full volume": (lambda w, p: w.end_pod(p, 75, failed("train", "NoSpaceLeft")), None),
    "a later attempt": (lambda w, p: w.end_pod(p, 75, failed("train", "Fenced")), None),
    "an error of the user": (lambda w, p: w.end_pod(p, 64, failed("train", "LossDiverged")), None),
    "preemption": (
        lambda w, p: [w.end_pod(each, 76) for each in w.pods(owner_of(p))],
        None,
    ),
    "pressure on the node": (
        lambda w, p: evict("Evicted", "The node was low on resource: memory.", w, p),
        None,
    ),
    "the pod's own use of the node": (
        lambda w, p: evict(
            "Evicted", 'Usage of EmptyDir volume "tmp" exceeds the limit "1Gi".', w, p
        ),
        None,
    ),
}


@pytest.mark.parametrize("what", BLAME)
def test_who_is_to_blame_for(what: str) -> None:
    happens, node = BLAME[what]
    world, pods = training()
    happens(world, pods[1])
    attempt = observe(world.job, world).find_attempt("train", 1)
    outcome = outcome_of(attempt, world.now, lambda _: None)
    assert isinstance(outcome, FailedAttempt)
    assert find_blamed_node(attempt, outcome) == node


def test_second_failure_on_the_same_node_excludes_it() -> None:
    once = count_failure([], "node2")
    assert once == [NodeFailures(name="node2", failures=1)]
    assert [node.name for node in once if node.excluded] == []
    twice = count_failure(count_failure(once, "node1"), "node2")
    assert [(n.name, n.failures, n.excluded) for n in twice] == [
        ("node1", 1, False),
        ("node2", 2, True),
    ]
    assert [node.name for node in twice if node.excluded] == ["node2"]


def test_the_list_of_nodes_is_bounded_and_drops_the_node_with_the_fewest_failures() -> None:
    nodes = [NodeFailures(name=f"n{i:03d}", failures=2, excluded=True) for i in range(MOST_NODES)]
    nodes[7] = NodeFailures(name="n007", failures=1)
    after = count_failure(nodes, "new")
    assert len(after) == MOST_NODES
    assert {"n007", "new"} & {node.name for node in after} == {"new"}


def fail_twice(world: World) -> World:
    """Node2 is lost under two attempts of train; the third has been created."""
    _, pods = training(world)
    for attempt in (1, 2):
        assert node_terms(world, f"glossary-train-{attempt}") is None, (
            "one failure does not exclude a node"
        )
        lose_node(world, pods[1])
        world.settle()
        recover(world, 10)
        if attempt == 1:
            pods = training(world, 2)[1]
    assert "glossary-train-3" in world.names("Job")
    return world


def node_terms(world: World, job: str) -> object:
    spec = world.need("Job", job)["spec"]["template"]["spec"]
    return (spec.get("affinity") or {}).get("nodeAffinity")


def test_a_node_that_failed_twice_is_avoided_and_named() -> None:
    world = fail_twice(World())
    assert world.status["nodes"] == [{"name": "node2", "failures": 2, "excluded": True}]
    assert world.status["restarts"] == 0
    field = {"key": "metadata.name", "operator": "NotIn", "values": ["node2"]}
    assert node_terms(world, "glossary-train-3") == {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchFields": [field]}]
        }
    }
    event = next(event for event in world.events if event.reason == "NodeExcluded")
    assert event.message.startswith("2 attempts ended because of node node2")


def test_the_profile_still_chooses_the_pool() -> None:
    world = World()
    profile = {**world.need("AcceleratorProfile", "cpu")["spec"]}
    world.add_profile("cpu", {**profile, "nodeSelector": {"pool": "a"}})
    fail_twice(world)
    spec = world.need("Job", "glossary-train-3")["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"pool": "a"}
    assert spec["affinity"]["nodeAffinity"]


def test_later_stages_avoid_it_too() -> None:
    world = fail_twice(World())
    world.add_pods("glossary-train-3")
    world.settle()
    world.succeed("train", 3)
    world.settle()
    assert node_terms(world, "glossary-evaluate-1") is not None


def test_exclusion_is_lifted_where_no_other_node_has_capacity() -> None:
    world = fail_twice(World())
    pods = world.add_pods("glossary-train-3", "Pending")
    world.set_unschedulable(pods[1], "0/2 nodes are available: 1 didn't match node affinity")
    world.settle()
    recover(world, 599)
    assert world.status["nodes"]
    assert world.condition("Reconciling")["reason"] == "Unschedulable"
    world.tick(1)
    world.settle()
    assert "nodes" not in world.status or world.status["nodes"] == []
    recover(world, 1)
    assert "glossary-train-4" in world.names("Job")
    assert "glossary-train-3" not in world.names("Job")
    assert node_terms(world, "glossary-train-4") is None
    assert world.status["restarts"] == 0
    event = next(event for event in world.events if event.reason == "ExclusionLifted")
    assert "without node2, which may be used again" in event.message


def test_exclusion_is_not_lifted_while_an_earlier_gang_takes_the_capacity() -> None:
    world = World()
    _, pods = training(world)
    for attempt in (1, 2):
        world.grace = 600
        world.end_pod(pods[1], 139)
        world.settle()
        recover(world, 10 * attempt)
        pods = training(world, 2)[1] if attempt == 1 else pods
    pods = list(world.add_pods("glossary-train-3", "Pending"))
    world.set_unschedulable(pods[0], "0/2 nodes are available: 1 Insufficient nvidia.com/gpu")
    recover(world, 300)
    assert world.stage("train")["attempt"] == 3
    assert world.status["nodes"][0]["excluded"]
    recover(world, 400)
    assert world.status["nodes"] == [], "a pod that should be gone long ago is not waited for"


def test_waiting_for_capacity_without_exclusions_is_no_reason_to_start_again() -> None:
    world = World()
    world.run_until("train")
    for pod in world.add_pods("glossary-train-1", "Pending"):
        world.set_unschedulable(pod, "0/2 nodes are available")
    recover(world, 4000)
    recover(world, 301)
    assert world.stage("train")["attempt"] == 1
    assert "glossary-train-1" in world.names("Job")


def test_suspending_and_resuming_clears_the_failures_of_nodes() -> None:
    world = fail_twice(World())
    world.edit(suspend=True)
    world.settle()
    assert world.status["phase"] == "Suspended"
    assert world.status["nodes"], "until it continues"
    world.edit(suspend=False)
    world.settle()
    assert world.status["nodes"] == []
    assert node_terms(world, world.names("Job")[-1]) is None
