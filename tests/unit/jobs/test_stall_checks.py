"""What is missing is named, and the job continues by itself when it appears."""

from typing import Any

import pytest
from finetune_operator.decision import HttpResponse

from tests.unit.jobs.world import CPU_PROFILE, World, job_manifest


def stalled(world: World) -> tuple[str, str]:
    """Reason and message of the Stalled condition, which must be True."""
    condition = world.condition("Stalled")
    assert condition["status"] == "True"
    assert world.status["message"] == condition["message"]
    assert world.condition("Reconciling")["status"] == "False"
    assert world.condition("Succeeded")["status"] == "Unknown"
    return condition["reason"], condition["message"]


def goes_on(world: World) -> None:
    world.settle()
    assert world.condition("Stalled")["status"] == "False"


def test_missing_profile() -> None:
    world = World()
    world.remove("AcceleratorProfile", "cpu")
    decision = world.settle()
    reason, message = stalled(world)
    assert reason == "ProfileNotFound"
    assert "AcceleratorProfile cpu " in message
    assert world.status["phase"] == "Pending"
    assert world.names("Job") == []
    assert decision.requeue_after is not None
    assert [(e.type, e.reason) for e in world.events] == [
        ("Normal", "Pending"),
        ("Warning", "ProfileNotFound"),
    ]
    world.add_profile("cpu", CPU_PROFILE)
    goes_on(world)
    assert world.names("Job") == ["glossary-prepare-1"]


def test_no_default_profile_or_two_of_them() -> None:
    world = World(job_manifest(compute={}))
    world.settle()
    assert stalled(world)[0] == "ProfileNotFound"
    world.add_profile("a", {**CPU_PROFILE, "default": True})
    world.add_profile("b", {**CPU_PROFILE, "default": True})
    world.settle()
    reason, message = stalled(world)
    assert reason == "ProfileAmbiguous"
    assert "a, b" in message
    world.add_profile("b", CPU_PROFILE)
    goes_on(world)


def test_profile_that_cannot_be_parsed() -> None:
    world = World()
    world.add_profile("cpu", {"memoryPerDevice": "much"})
    world.settle()
    reason, message = stalled(world)
    assert reason == "ProfileInvalid"
    assert "memoryPerDevice" in message


def test_profile_deleted_before_the_training() -> None:
    world = World()
    world.settle()
    world.add_pods("glossary-prepare-1")
    world.settle()
    world.remove("AcceleratorProfile", "cpu")
    world.succeed("prepare")
    world.settle()
    assert stalled(world)[0] == "ProfileNotFound"
    assert world.status["phase"] == "Queued"
    assert world.status["data"]["trainSequences"] == 800
    world.add_profile("cpu", CPU_PROFILE)
    goes_on(world)
    assert "glossary-train-1" in world.names("Job")


def test_missing_claim_of_the_user_is_waited_for_before_a_pod_is_created() -> None:
    world = World()
    world.remove("PersistentVolumeClaim", "assets")
    world.settle()
    reason, message = stalled(world)
    assert reason == "VolumeClaimNotFound"
    assert "PersistentVolumeClaim assets " in message
    assert world.names("Job") == []
    world.add_claim("assets", "Pending")
    goes_on(world)
    assert world.names("Job") == ["glossary-prepare-1"]


def test_claim_without_a_volume_is_named_instead_of_the_scheduler() -> None:
    world = World()
    world.settle()
    (pod,) = world.add_pods("glossary-prepare-1", "Pending")
    text = "pod has unbound immediate PersistentVolumeClaims"
    world.set_unschedulable(pod, text)
    world.add_claim("assets", "Pending")
    world.add_claim("finetune-workspace", "Bound")
    world.tick(11)
    world.settle()
    reason, message = stalled(world)
    assert reason == "VolumeClaimNotBound"
    assert "assets" in message
    assert text in message


def test_missing_secret() -> None:
    world = World()
    world.settle()
    (pod,) = world.add_pods("glossary-prepare-1", "Pending")
    world.set_waiting(pod, "CreateContainerConfigError", 'secret "hf-token" not found')
    world.settle()
    reason, message = stalled(world)
    assert reason == "SecretNotFound"
    assert "Secret hf-token " in message
    assert world.status["phase"] == "Preparing"
    world.replace_status(pod, {"phase": "Running", "podIP": "10.0.0.7"})
    goes_on(world)
    assert world.stage("prepare")["attempt"] == 1


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName"])
def test_image_that_cannot_be_pulled(reason: str) -> None:
    world = World()
    world.settle()
    (pod,) = world.add_pods("glossary-prepare-1", "Pending")
    world.set_waiting(pod, reason, "no such host")
    world.settle()
    assert stalled(world)[0] == "ImagePullFailed"
    assert "no such host" in world.status["message"]


def test_unschedulable_gang_is_queued_and_reported_while_its_pods_are_pending() -> None:
    world = World()
    world.run_until("train")
    pods = world.add_pods("glossary-train-1")
    text = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
    for pod in pods:
        world.set_unschedulable(pod, text)
    world.settle()
    assert world.status["phase"] == "Queued"
    assert text not in world.status["message"]
    world.tick(10)
    world.settle()
    assert text in world.status["message"]
    assert world.condition("Stalled")["status"] == "False"
    world.tick(590)
    world.settle()
    reason, message = stalled(world)
    assert reason == "Unschedulable"
    assert text in message
    assert world.status["phase"] == "Queued"
    for pod in pods:
        world.schedule(pod, pod["metadata"]["name"])
    goes_on(world)
    assert world.status["phase"] == "Training"


def test_pods_that_are_never_created() -> None:
    world = World()
    world.settle()
    world.tick(21)
    world.settle()
    reason, message = stalled(world)
    assert reason == "PodsNotCreated"
    assert "kubectl describe job glossary-prepare-1" in message


QUOTA = (
    'pods "glossary-prepare-1-…" is forbidden: exceeded quota: team, requested: '
    "limits.cpu=1, used: limits.cpu=8, limited: limits.cpu=8"
)
LIMIT_RANGE = (
    'Pod "glossary-prepare-1-…" is invalid: spec.containers[0].resources.requests: '
    'Invalid value: "1Gi": must be less than or equal to memory limit of 512Mi'
)


def test_refused_pods_are_reported_in_the_words_of_the_api_server() -> None:
    world = World()
    world.settle()
    world.refuse_pods("glossary-prepare-1", f"Error creating: {QUOTA.replace('…', 'x2bq7')}")
    world.tick(21)
    world.settle()
    assert stalled(world) == (
        "PodsNotCreated",
        f"Job glossary-prepare-1 has 0 of 1 pods; the API server refuses them: {QUOTA}",
    )
    before = world.server.version
    world.refuse_pods("glossary-prepare-1", f"Error creating: {QUOTA.replace('…', 'k44lw')}")
    world.settle()
    assert world.server.version == before + 1, "no write for another name of the pod"
    repeated = f"(combined from similar events): Error creating: {LIMIT_RANGE}"
    world.tick(1)
    world.refuse_pods("glossary-prepare-1", repeated)
    world.settle()
    assert stalled(world)[1].endswith(f"refuses them: {LIMIT_RANGE}")
    assert [e.reason for e in world.events if e.type == "Warning"] == ["PodsNotCreated"]
    world.add_pods("glossary-prepare-1")
    goes_on(world)


@pytest.mark.parametrize(
    "changes",
    [
        {"message": None},
        {"message": "", "lastTimestamp": None},
        {"message": 7, "lastTimestamp": "yesterday"},
    ],
)
def test_an_event_that_explains_nothing_is_ignored(changes: dict[str, Any]) -> None:
    world = World()
    world.settle()
    world.refuse_pods("glossary-prepare-1", **{"message": QUOTA, **changes})
    world.tick(21)
    world.settle()
    reason, message = stalled(world)
    assert reason == "PodsNotCreated"
    assert "kubectl describe job glossary-prepare-1" in message


def test_the_newest_of_several_refusals_is_reported() -> None:
    world = World()
    world.settle()
    world.tick(21)
    world.refuse_pods("glossary-prepare-1", "the last", lastTimestamp=world.time())
    world.refuse_pods("glossary-prepare-1", "an older one", lastTimestamp=world.time(-9))
    newest = {"lastTimestamp": None, "eventTime": world.time(-5).replace("Z", ".123456Z")}
    world.refuse_pods("glossary-prepare-1", "one of events.k8s.io", **newest)
    repeated = {"eventTime": world.time(-60), "series": {"lastObservedTime": world.time(-1)}}
    world.refuse_pods("glossary-prepare-1", "a series", lastTimestamp=None, **repeated)
    world.settle()
    assert stalled(world)[1].endswith("refuses them: the last")


def test_without_the_permission_to_list_events_the_message_names_a_command() -> None:
    world = World()
    world.settle()
    world.tick(5)
    world.reconcile()
    (query,) = world.decision.requests
    assert (query.id, query.interval) == (
        f"pod-refusals/{world.need('Job', 'glossary-prepare-1')['metadata']['uid']}",
        30,
    )
    world.answer_queries = lambda: None  # type: ignore[method-assign]
    world.responses[query.id] = HttpResponse(at=0.0, error="403 events is forbidden")
    world.tick(16)
    world.settle()
    assert "kubectl describe job glossary-prepare-1" in stalled(world)[1]


def test_events_are_queried_only_while_a_job_lacks_pods() -> None:
    world = World()
    world.settle()
    world.tick(4)
    world.settle()
    assert world.decision.requests == ()
    world.tick(1)
    world.settle()
    assert len(world.decision.requests) == 1
    world.patch(world.need("Job", "glossary-prepare-1"), {"spec": {"suspend": True}})
    world.settle()
    assert world.decision.requests == ()
    world.patch(world.need("Job", "glossary-prepare-1"), {"spec": {"suspend": None}})
    world.add_pods("glossary-prepare-1", phase="Pending")
    world.settle()
    assert world.decision.requests == ()


def test_a_stall_has_one_event() -> None:
    world = World()
    world.remove("AcceleratorProfile", "cpu")
    for _ in range(5):
        world.tick(5)
        world.reconcile()
    assert [e.reason for e in world.events] == ["Pending", "ProfileNotFound"]


def test_the_message_has_the_kubelets_reason_why_pods_do_not_run() -> None:
    world = World()
    world.settle()
    (pod,) = world.add_pods("glossary-prepare-1", phase="Pending")
    world.set_waiting(pod, "ContainerCreating", "")
    world.settle()
    assert world.condition("Stalled")["status"] == "False"
    assert world.status["message"] == ("prepare is starting: 0 of 1 pods run (ContainerCreating)")


def test_job_that_a_queue_holds_back_is_no_stall() -> None:
    world = World()
    world.settle()
    world.patch(world.need("Job", "glossary-prepare-1"), {"spec": {"suspend": True}})
    world.tick(60)
    world.settle()
    assert world.condition("Stalled")["status"] == "False"
    reconciling = world.condition("Reconciling")
    assert (reconciling["status"], reconciling["reason"]) == ("True", "WaitingForQueue")
    assert "its Job is suspended" in world.status["message"]
    assert "no label kueue.x-k8s.io/queue-name" in world.status["message"]


def test_what_a_person_has_to_provide_is_reported_before_a_node_that_may_still_come() -> None:
    world = World()
    world.run_until("train")
    pods = world.add_pods("glossary-train-1", "Pending")
    world.set_unschedulable(pods[0], "0/2 nodes are available")
    world.set_waiting(pods[1], "ImagePullBackOff", "no such host")
    world.tick(10)
    world.settle()
    assert stalled(world)[0] == "ImagePullFailed"


@pytest.mark.parametrize("time", ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "soon"])
def test_a_scheduler_may_write_any_time(time: str) -> None:
    world = World()
    world.run_until("train")
    (_, pod) = world.add_pods("glossary-train-1")
    status = {"type": "PodScheduled", "status": "False", "lastTransitionTime": time}
    world.replace_fields(pod, {"nodeName": None})
    world.replace_status(pod, {"phase": "Pending", "conditions": [status]})
    node = {"name": "node9", "failures": 2, "excluded": True}
    world.write_status(world.job, {**world.status, "nodes": [node]})
    world.settle()
    assert world.status["phase"] == "Queued"


def test_labels_of_kueue_reach_the_jobs_and_not_their_pods() -> None:
    job = job_manifest()
    queue = {"kueue.x-k8s.io/queue-name": "team-a", "kueue.x-k8s.io/priority-class": "high"}
    job["metadata"]["labels"] = {**queue, "team": "a"}
    world = World(job)
    world.settle()
    made = world.need("Job", "glossary-prepare-1")
    labels = made["metadata"]["labels"]
    assert queue.items() <= labels.items()
    assert "team" not in labels
    assert not queue.keys() & made["spec"]["template"]["metadata"]["labels"].keys()
    world.patch(made, {"spec": {"suspend": True}})
    world.tick(21)
    world.settle()
    assert world.status["message"].endswith("as by a queue without free capacity")
