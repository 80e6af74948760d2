"""What becomes of a failed attempt."""

import json

import pytest
from finetune_operator.resources.configmap import RUN_FILE

from tests.unit.jobs.world import (
    NAMESPACE,
    World,
    failed,
    job_manifest,
    recover,
    result,
    training,
)


def test_error_of_the_user_ends_the_job_with_place_and_remedy() -> None:
    world = World()
    world.settle()
    (pod,) = world.add_pods("glossary-prepare-1")
    text = failed("prepare", "BrokenRow", file="foldoc.jsonl", line=17, remedy="mend the row")
    world.end_pod(pod, 64, text)
    world.settle()
    status = world.status
    assert status["phase"] == "Failed"
    assert status["failure"] == {
        "stage": "prepare",
        "attempt": 1,
        "reason": "BrokenRow",
        "message": "BrokenRow it is",
        "file": "foldoc.jsonl",
        "line": 17,
        "remedy": "mend the row",
    }
    assert status["message"] == "prepare: BrokenRow it is (mend the row)"
    assert world.condition("Succeeded")["status"] == "False"
    assert world.condition("Succeeded")["reason"] == "BrokenRow"
    assert world.condition("Reconciling")["status"] == "False"
    assert world.condition("Prepared")["reason"] == "BrokenRow"
    assert world.stage("prepare")["state"] == "Failed"
    assert ("Warning", "BrokenRow") in [(e.type, e.reason) for e in world.events]
    assert world.names("Job") == ["glossary-prepare-1"]
    assert world.status["restarts"] == 0


def test_error_of_the_user_on_any_rank_ends_the_job() -> None:
    world, pods = training()
    world.mark_disrupted(pods[0], "EvictionByEvictionAPI")
    world.end_pod(pods[0], 76)
    world.end_pod(pods[1], 64, failed("train", "BrokenTokenizer"))
    world.settle()
    assert world.status["failure"]["reason"] == "BrokenTokenizer"
    assert world.status["phase"] == "Failed"


def test_crash_is_tried_again_after_ten_seconds_with_the_old_job_gone_first() -> None:
    world, pods = training()
    world.end_pod(pods[1], 1)
    world.settle()
    assert world.status["phase"] == "Queued"
    assert world.status["restarts"] == 1
    assert world.status["failure"]["reason"] == "Crashed"
    assert world.status["failure"]["attempt"] == 1
    assert world.decision.requeue_after == pytest.approx(10)
    recover(world, 9)
    assert "glossary-train-1" in world.names("Job")
    world.tick(1)
    first = world.reconcile()
    assert [ref.name for ref in first.delete] == ["glossary-train-1"]
    assert not first.create
    second = world.reconcile()
    assert {m["metadata"]["name"] for m in second.create} == {"glossary-train-2"}
    world.settle()
    assert world.stage("train")["attempt"] == 2
    assert world.status["failure"]["attempt"] == 1


def test_back_off_doubles_and_restarts_run_out() -> None:
    world = World(job_manifest(maxRestarts=3))
    world.run_until("train")
    for attempt, wait in ((1, 10), (2, 20), (3, 40)):
        pods = world.add_pods(f"glossary-train-{attempt}")
        world.settle()
        world.end_pod(pods[0], 75, failed("train", "OutOfDeviceMemory", attempt))
        world.settle()
        assert world.status["restarts"] == attempt
        assert world.decision.requeue_after == pytest.approx(wait)
        recover(world, wait)
    pods = world.add_pods("glossary-train-4")
    world.end_pod(pods[0], 75, failed("train", "OutOfDeviceMemory", 4))
    world.settle()
    status = world.status
    assert status["phase"] == "Failed"
    assert status["restarts"] == 3
    assert status["failure"]["reason"] == "OutOfDeviceMemory"
    assert status["failure"]["attempt"] == 4
    assert status["failure"]["message"].endswith("(after 3 restarts)")


def test_no_restarts_asked_for_means_none() -> None:
    world, pods = training(World(job_manifest(maxRestarts=0)))
    world.end_pod(pods[0], 1)
    world.settle()
    assert world.status["phase"] == "Failed"


def test_typed_failure_is_kept_until_the_stage_succeeds() -> None:
    world, pods = training()
    world.end_pod(pods[0], 75, failed("train", "CheckpointNotWritten"))
    world.settle()
    assert world.status["failure"]["reason"] == "CheckpointNotWritten"
    assert ("Warning", "CheckpointNotWritten") in [(e.type, e.reason) for e in world.events]
    recover(world, 10)
    world.add_pods("glossary-train-2")
    world.settle()
    assert world.status["failure"]["reason"] == "CheckpointNotWritten"
    world.succeed("train", 2)
    world.settle()
    assert "failure" not in world.status
    assert world.status["restarts"] == 1


def test_preempted_gang_is_replaced_and_not_counted() -> None:
    world, pods = training()
    for pod in pods:
        world.end_pod(pod, 76, result("train", outcome="Preempted"))
    world.settle()
    recover(world, 1)
    assert world.stage("train")["attempt"] == 2
    assert world.status["restarts"] == 0
    assert world.status["failure"]["reason"] == "Preempted"


def test_lost_node_is_not_waited_for_and_not_counted() -> None:
    """Its pod stays Running and Terminating for ever; only the condition tells."""
    world, pods = training()
    world.mark_disrupted(pods[1], "DeletionByTaintManager")
    world.mark_deleted(pods[1], 120)
    world.settle()
    recover(world, 1)
    assert "glossary-train-2" in world.names("Job")
    assert world.status["restarts"] == 0
    assert world.status["failure"]["reason"] == "DeletionByTaintManager"


def test_gang_on_a_node_that_is_taken_back_gets_its_grace_and_blames_nobody() -> None:
    """The same condition as on a lost node, but the pods are Ready: they are saving."""
    world, pods = training()
    pods[1]["status"].setdefault("conditions", []).append({"type": "Ready", "status": "True"})
    world.mark_disrupted(pods[1], "DeletionByTaintManager")
    for pod in pods:
        world.mark_deleted(pod, 120)
    recover(world, 60)
    assert "glossary-train-1" in world.names("Job")
    assert world.status["message"].startswith("train is stopping; pod glossary-train-1-")
    for pod in pods:
        world.end_pod(pod, 76)
    world.settle()
    recover(world, 1)
    assert world.stage("train")["attempt"] == 2
    assert not world.status.get("nodes")


def test_a_pod_that_still_gets_its_image_on_a_node_that_is_taken_back_blames_nobody() -> None:
    world, pods = training()
    pods[1]["status"]["phase"] = "Pending"
    world.mark_disrupted(pods[1], "DeletionByTaintManager")
    world.mark_deleted(pods[1], 30)
    world.settle()
    recover(world, 60)
    recover(world, 1)
    assert world.stage("train")["attempt"] == 2
    assert world.status["restarts"] == 0
    assert not world.status.get("nodes")


@pytest.mark.parametrize("reason", ["Fenced", "AttemptAlreadyClaimed"])
def test_an_attempt_that_found_another_one_at_work_is_free(reason: str) -> None:
    """A Job that was deleted by hand while its creation was late comes back under its name."""
    world, pods = training()
    world.end_pod(pods[0], 75, failed("train", reason))
    world.settle()
    recover(world, 10)
    assert world.stage("train")["attempt"] == 2
    assert world.status["restarts"] == 0


def test_evicted_gang_gets_its_grace_to_save_before_it_is_replaced() -> None:
    world, pods = training()
    world.mark_disrupted(pods[0], "EvictionByEvictionAPI")
    for pod in pods:
        world.mark_deleted(pod, 120)
    recover(world, 60)
    assert "glossary-train-1" in world.names("Job")
    assert world.status["message"].startswith("train is stopping; pod glossary-train-1-")
    for pod in pods:
        world.end_pod(pod, 76)
    world.settle()
    recover(world, 1)
    assert world.stage("train")["attempt"] == 2
    assert world.status["restarts"] == 0


def test_pod_that_overstays_its_grace_is_given_up() -> None:
    world, pods = training()
    for pod in pods:
        world.mark_deleted(pod, 120)
    recover(world, 129)
    assert world.names("Job")[-1] == "glossary-train-1"
    recover(world, 2)
    recover(world, 2)
    assert world.names("Job")[-1] == "glossary-train-2"


def test_first_cause_decides_a_crash_whose_peers_were_told_to_stop() -> None:
    world, pods = training()
    world.end_pod(pods[1], 137, reason="OOMKilled")
    world.tick(1)
    world.mark_deleted(pods[0], 120)
    world.tick(2)
    world.end_pod(pods[0], 76)
    world.settle()
    assert world.status["failure"]["reason"] == "OutOfHostMemory"
    assert "hostMemoryPerDevice" in world.status["failure"]["remedy"]
    assert world.status["restarts"] == 1


def test_first_cause_decides_a_deleted_pod_whose_peers_then_crashed() -> None:
    world, pods = training()
    world.mark_deleted(pods[0], 120)
    world.tick(3)
    world.end_pod(pods[1], 1)
    world.tick(2)
    world.end_pod(pods[0], 143)
    world.settle()
    assert world.status["restarts"] == 0
    assert world.status["failure"]["reason"] == "PodDeleted"


PEER_LOST = failed("train", "PeerLost")


def test_rank_that_lost_its_peer_waits_for_the_peers_story() -> None:
    world, pods = training()
    world.end_pod(pods[0], 75, PEER_LOST)
    world.settle()
    assert world.status["restarts"] == 0
    assert world.status["message"] == "train is ending: 1 of 2 pods have ended"
    world.tick(1)
    world.end_pod(pods[1], 75, failed("train", "OutOfDeviceMemory"))
    world.settle()
    assert world.status["failure"]["reason"] == "OutOfDeviceMemory"
    assert world.status["restarts"] == 1


def test_peer_that_was_on_a_lost_node_is_a_disruption_although_it_shows_later() -> None:
    world, pods = training()
    world.end_pod(pods[0], 75, PEER_LOST)
    world.mark_deleted(pods[1], 120)
    world.settle()
    world.tick(12)
    world.mark_disrupted(pods[1], "DeletionByTaintManager")
    world.settle()
    recover(world, 1)
    assert world.status["restarts"] == 0
    assert world.status["failure"]["reason"] == "DeletionByTaintManager"


def test_lost_peer_that_never_tells_is_a_crash_after_half_a_minute() -> None:
    world, pods = training()
    world.end_pod(pods[0], 75, PEER_LOST)
    world.tick(1)
    world.mark_deleted(pods[1], 120)
    recover(world, 30)
    assert world.status["failure"]["reason"] == "PeerLost"
    assert world.status["restarts"] == 1


def test_crash_is_not_held_up_by_peers_that_hang() -> None:
    world, pods = training()
    world.end_pod(pods[1], 1)
    world.mark_deleted(pods[0], 120)
    world.settle()
    recover(world, 10)
    assert world.stage("train")["attempt"] == 2


@pytest.mark.parametrize("reason", ["Evicted", "NodeShutdown"])
def test_kubelet_that_ended_a_pod_without_a_condition_is_a_disruption(reason: str) -> None:
    world, pods = training()
    pods[0]["status"] = {"phase": "Failed", "reason": reason, "message": "low on disk"}
    world.settle()
    recover(world, 1)
    assert world.stage("train")["attempt"] == 2
    assert world.status["restarts"] == 0


def test_pod_that_the_kubelet_refused_is_tried_again() -> None:
    """It has no container status, so no time and no exit code."""
    world, pods = training()
    pods[0]["status"] = {"phase": "Failed", "reason": "UnexpectedAdmissionError"}
    world.settle()
    assert world.status["restarts"] == 1
    recover(world, 10)
    assert world.stage("train")["attempt"] == 2


def test_job_deleted_by_hand_is_replaced_and_not_counted() -> None:
    world, pods = training()
    for pod in pods:
        world.remove_pod(pod)
    del world.objects["Job", NAMESPACE, "glossary-train-1"]
    world.settle()
    recover(world, 15)
    assert world.stage("train")["attempt"] == 2
    assert world.status["restarts"] == 0
    assert world.status["failure"]["reason"] == "JobDeleted"


def test_a_job_that_was_only_not_seen_yet_is_not_replaced() -> None:
    world, pods = training()
    job = world.objects.pop(("Job", NAMESPACE, "glossary-train-1"))
    for pod in pods:
        world.remove_pod(pod)
    world.settle()
    assert world.status["failure"]["reason"] == "JobDeleted"
    world.tick(10)
    world.settle()
    assert world.stage("train")["attempt"] == 1, "another replica may have just created it"
    world.put(job)
    world.settle()
    recover(world, 60)
    assert world.stage("train")["attempt"] == 1
    assert "failure" not in world.status


def test_pods_deleted_by_force_are_missed_once_the_job_is_over() -> None:
    world, pods = training()
    for pod in pods:
        world.remove_pod(pod)
    world.settle()
    assert world.stage("train")["attempt"] == 1
    world.end_job("glossary-train-1", "Failed")
    world.settle()
    assert world.stage("train")["attempt"] == 1, "the cache may lag"
    recover(world, 6)
    recover(world, 1)
    assert world.stage("train")["attempt"] == 2
    assert world.status["restarts"] == 0


def test_failed_attempt_stays_failed_when_its_pods_go() -> None:
    world, pods = training()
    world.end_pod(pods[0], 1)
    world.settle()
    for pod in pods:
        world.remove_pod(pod)
    recover(world, 11)
    assert world.stage("train")["attempt"] == 2
    assert world.status["restarts"] == 1


def test_asked_for_but_unseen_attempt_is_asked_for_again_under_the_same_name() -> None:
    world = World()
    world.reconcile()
    for name in world.names("Job"):
        del world.objects["Job", NAMESPACE, name]
    again = world.reconcile()
    assert [m["kind"] for m in again.create] == ["Job"]
    assert again.create[0]["metadata"]["name"] == "glossary-prepare-1"


def test_failure_noted_before_a_crash_of_the_operator_is_not_counted_twice() -> None:
    world, pods = training()
    world.end_pod(pods[0], 1)
    world.reconcile()
    assert world.status["restarts"] == 1
    for _ in range(3):
        world.tick(1)
        world.reconcile()
    assert world.status["restarts"] == 1


def test_retry_gets_the_same_bytes_but_for_attempt_and_host() -> None:
    world, pods = training()
    world.job["spec"]["training"]["maxSteps"] = 31
    world.add_profile("cpu", {"devicesPerNode": 2, "memoryPerDevice": "2Gi", "cpuPerDevice": "2"})
    world.end_pod(pods[0], 1)
    world.settle()
    recover(world, 10)
    first, second = (_run_config(world, f"glossary-train-{n}") for n in (1, 2))
    assert (first.pop("attempt"), second.pop("attempt")) == (1, 2)
    assert first.pop("masterHost") == "glossary-train-1-0.glossary-train-1"
    assert second.pop("masterHost") == "glossary-train-2-0.glossary-train-2"
    assert first == second


def _run_config(world: World, name: str) -> dict[str, object]:
    found = world.get("ConfigMap", NAMESPACE, name)
    assert found is not None
    assert found["immutable"]
    return dict(json.loads(found["data"][RUN_FILE]))


def test_jobs_of_older_attempts_are_removed_when_seen() -> None:
    world, pods = training()
    old = world.objects["Job", NAMESPACE, "glossary-train-1"]
    world.end_pod(pods[0], 1)
    world.settle()
    recover(world, 10)
    world.put(old)
    assert [ref.uid for ref in world.reconcile().delete] == [old["metadata"]["uid"]]


def test_configmap_and_service_lost_while_it_waits_are_made_again() -> None:
    world = World()
    world.run_until("train")
    world.add_pods("glossary-train-1", "Pending")
    for kind in ("ConfigMap", "Service"):
        del world.objects[kind, NAMESPACE, "glossary-train-1"]
    world.settle()
    assert "glossary-train-1" in world.names("ConfigMap")
    assert "glossary-train-1" in world.names("Service")
    assert world.stage("train")["attempt"] == 1


def test_name_held_by_the_remains_of_an_earlier_job_is_waited_for() -> None:
    world = World()
    meta = {
        "name": "glossary-prepare-1",
        "namespace": NAMESPACE,
        "uid": "old",
        "ownerReferences": [{"uid": "another-job"}],
    }
    world.put({"kind": "ConfigMap", "metadata": meta})
    world.settle()
    assert world.condition("Stalled")["reason"] == "NameTaken"
    assert world.names("Job") == []
    del world.objects["ConfigMap", NAMESPACE, "glossary-prepare-1"]
    world.settle()
    assert world.names("Job") == ["glossary-prepare-1"]
    assert world.condition("Stalled")["status"] == "False"


def preempt(world: World, attempt: int) -> None:
    """A gang runs for a second and is preempted."""
    _, pods = training(world, attempt)
    world.tick(1)
    for pod in pods:
        world.end_pod(pod, 76)
    world.settle()


def test_free_restarts_are_kept_apart_by_a_time_that_grows() -> None:
    world = World()
    waits = []
    for attempt in range(1, 12):
        preempt(world, attempt)
        waits.append(world.decision.requeue_after)
        recover(world, 300)
    assert waits == [1, 1, 3, 7, 15, 31, 63, 127, 255, 299, 299]
    assert world.status["restarts"] == 0


def test_who_ran_for_longer_than_the_wait_goes_on_at_once() -> None:
    world = World()
    for attempt in range(1, 6):
        preempt(world, attempt)
        recover(world, 300)
    _, pods = training(world, 6)
    world.tick(3600)
    for pod in pods:
        world.end_pod(pod, 76)
    world.settle()
    assert world.decision.requeue_after == 1


def test_a_job_deleted_by_hand_again_and_again_does_not_spin() -> None:
    world, _ = training()
    for attempt in range(1, 6):
        for pod in world.pods(f"glossary-train-{attempt}"):
            world.remove_pod(pod)
        del world.objects["Job", NAMESPACE, f"glossary-train-{attempt}"]
        world.settle()
        wait = max(15, 2 ** (attempt - 1))
        assert world.decision.requeue_after == wait
        recover(world, wait)
    assert "glossary-train-6" in world.names("Job")


def test_an_operator_that_starts_anew_keeps_to_the_back_off() -> None:
    """The time of the next attempt is in the status, even when the Job that failed is gone."""
    world, pods = training()
    world.end_pod(pods[0], 1)
    world.settle()
    assert world.stage("train")["retryAt"] == "2026-01-05T12:00:30Z"
    del world.objects["Job", NAMESPACE, "glossary-train-1"]
    recover(world, 9)
    assert world.names("Job") == ["glossary-prepare-1"]
    recover(world, 1)
    assert "glossary-train-2" in world.names("Job")
    assert "retryAt" not in world.stage("train")


OWN_DOING = [
    "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ",
    'Container trainer exceeded its local ephemeral storage limit "1Gi". ',
    'Usage of EmptyDir volume "shm" exceeds the limit "1Gi". ',
]


@pytest.mark.parametrize("message", OWN_DOING)
@pytest.mark.parametrize("condition", [False, True])
def test_eviction_for_what_the_pod_used_itself_is_a_crash(message: str, condition: bool) -> None:
    world, pods = training()
    pods[0]["status"] = {"phase": "Failed", "reason": "Evicted", "message": message}
    if condition:
        world.mark_disrupted(pods[0], "TerminationByKubelet")
        pods[0]["status"]["conditions"][0]["message"] = message
    world.settle()
    assert world.status["restarts"] == 1
    assert world.status["failure"]["reason"] == "Evicted"
    assert message.strip()[:30] in world.status["failure"]["message"]
    if "shm" in message:
        assert "sharedMemory" in world.status["failure"]["remedy"]


PRESSURE = (
    "The node was low on resource: memory. Threshold quantity: 100Mi, available: 90Mi. Container "
    "trainer was using 5Gi, request is 4Gi, has larger consumption of memory. "
)


def test_eviction_for_the_nodes_sake_is_free() -> None:
    world, pods = training()
    pods[0]["status"] = {"phase": "Failed", "reason": "Evicted", "message": PRESSURE}
    world.settle()
    assert world.status["restarts"] == 0


def test_message_says_where_a_preempted_job_was_and_where_it_goes_on() -> None:
    world, pods = training()
    told = {"step": 118, "totalSteps": 200, "etaSeconds": 300, "lastCheckpointStep": 100}
    world.tell(pods[0], **told, checkpointSeconds=2.5)
    world.settle()
    facts = {"steps": 120, "worldSize": 2, "engine": "DDP"}
    world.end_pod(pods[0], 76, result("train", outcome="Preempted", train=facts))
    world.end_pod(pods[1], 76, result("train", outcome="Preempted", train=None))
    world.settle()
    says = "train was preempted at step 120, resumes from step 120"
    assert world.status["message"] == world.stage("train")["message"] == says
    assert world.status["checkpoint"] == {"step": 120, "seconds": 2.5}
    assert world.status["progress"]["summary"] == "120/200"
    assert "eta" not in world.status["progress"]
    recover(world, 1)
    says = "train is starting, attempt 2, resumes from step 120: 0 of 2 pods run"
    assert world.status["message"] == says


def test_message_counts_crashes_and_says_what_is_lost() -> None:
    world, pods = training()
    world.tell(pods[0], step=118, totalSteps=200, lastCheckpointStep=100)
    world.settle()
    world.end_pod(pods[1], 1)
    world.settle()
    name = pods[1]["metadata"]["name"]
    assert world.status["message"] == (
        f"train attempt 1 ended at step 118: pod {name} ended with exit code 1 and left no result; "
        "restart 1 of 3; resumes from step 100"
    )


def test_message_of_a_lost_node() -> None:
    world, pods = training()
    world.mark_disrupted(pods[1], "DeletionByTaintManager")
    world.mark_deleted(pods[1], 120)
    world.settle()
    assert world.status["message"] == "train lost a node, starts over"


@pytest.mark.parametrize("stage", ["prepare", "evaluate", "export"])
def test_a_dead_node_under_a_stage_of_one_pod_is_not_waited_for(stage: str) -> None:
    """Its pod lingers for ever, beside the one of the next attempt."""
    world = World(job_manifest(serve=None))
    world.run_until(stage)
    (pod,) = world.add_pods(f"glossary-{stage}-1")
    world.settle()
    world.grace = 30
    world.mark_disrupted(pod, "DeletionByTaintManager")
    world.mark_deleted(pod, 30)
    world.settle()
    recover(world, 1)
    assert world.stage(stage)["attempt"] == 2
    recover(world, 600)
    world.add_pods(f"glossary-{stage}-2")
    world.settle()
    world.succeed(stage, 2)
    world.settle()
    assert world.stage(stage)["state"] == "Succeeded"
    assert len(world.pods(f"glossary-{stage}-1")) == 1


def test_what_a_deleted_pod_could_not_save_is_told() -> None:
    world, pods = training()
    for pod in pods:
        world.mark_deleted(pod, 120)
        world.end_pod(pod, 75, failed("train", "NoSpaceLeft", message="The volume is full."))
    world.settle()
    assert world.status["restarts"] == 0
    failure = world.status["failure"]
    assert failure["reason"] == "PodDeleted"
    assert failure["message"].endswith(
        "was deleted and could not save its work: The volume is full."
    )


def test_a_workspace_that_is_too_small_fails_the_job_before_a_device_is_asked_for() -> None:
    world = World()
    world.settle()
    (pod,) = world.add_pods("glossary-prepare-1")
    facts = {"freeBytes": 10**6, "writeBytesPerSecond": 1e8}
    world.end_pod(pod, 0, result("prepare", workspace=facts))
    world.settle()
    assert world.status["phase"] == "Failed"
    assert world.status["failure"]["reason"] == "WorkspaceTooSmall"
    assert "enlarge claim finetune-workspace" in world.status["message"]
    assert world.names("Job") == ["glossary-prepare-1"]


def test_the_start_is_told_in_the_write_before_anything_is_made() -> None:
    world = World()
    decision = world.reconcile()
    assert decision.status is not None
    assert decision.status["startedAt"] == "2026-01-05T12:00:00Z"
    assert decision.create


def test_a_job_that_waits_for_a_profile_has_not_begun() -> None:
    world = World(job_manifest(compute={"profile": "h100"}))
    world.settle()
    assert world.condition("Stalled")["status"] == "True"
    assert "startedAt" not in world.status


@pytest.mark.parametrize(("most", "phase"), [(0, "Failed"), (1, "Failed"), (5, "Queued")])
def test_restarts_allowed_are_those_of_the_moment_of_the_crash(most: int, phase: str) -> None:
    world, pods = training(World(job_manifest(maxRestarts=1)))
    world.end_pod(pods[0], 1)
    world.settle()
    recover(world, 10)
    _, pods = training(world, 2)
    world.edit(maxRestarts=most)
    world.settle()
    assert world.status["phase"] == "Training", "what was counted already is no crash"
    world.end_pod(pods[0], 1)
    world.settle()
    assert world.status["phase"] == phase


@pytest.mark.parametrize("reason", ["Unknown", "ContainerStatusUnknown"])
def test_a_node_that_restarts_before_anybody_notices_is_a_disruption(reason: str) -> None:
    world, pods = training()
    world.end_pod(pods[0], 255, reason=reason)
    world.settle()
    recover(world, 2)
    assert world.stage("train")["attempt"] == 2
    assert world.status["restarts"] == 0
    assert world.status["failure"]["reason"] == "NodeRestarted"


def test_one_pod_of_two_is_no_success_although_job_and_run_json_are_gone() -> None:
    world, pods = training()
    world.succeed("train")
    world.remove_pod(pods[1])
    for kind in ("Job", "ConfigMap"):
        del world.objects[kind, NAMESPACE, "glossary-train-1"]
    world.settle()
    assert world.stage("train")["state"] == "Running"


def test_no_crash_is_waited_after_for_longer_than_five_minutes() -> None:
    world, pods = training(World(job_manifest(maxRestarts=100)))
    world.put({**world.job, "status": {**world.status, "restarts": 40}})
    world.end_pod(pods[0], 1)
    world.settle()
    assert world.status["restarts"] == 41
    recover(world, 301)
    recover(world, 1)
    assert world.names("Job")[-1] == "glossary-train-2"


def test_the_leaders_success_waits_for_the_rest_of_the_gang() -> None:
    world, pods = training()
    world.end_pod(pods[0], 0, result("train"))
    world.settle()
    assert world.stage("train")["state"] == "Running"
    assert "glossary-evaluate-1" not in world.names("Job")
    world.end_pod(pods[1], 1)
    world.settle()
    assert world.status["failure"]["reason"] == "Crashed"
    assert world.status["restarts"] == 1


@pytest.mark.parametrize("wrong", [{"outcome": "Failed"}, {"stage": "evaluate"}])
def test_an_exit_of_0_with_the_word_of_something_else_is_no_success(wrong: dict[str, str]) -> None:
    world, pods = training()
    message = json.dumps({**json.loads(result("train")), **wrong})
    for pod in pods:
        world.end_pod(pod, 0, message)
    world.settle()
    assert world.status["failure"]["reason"] == "NoResult"
    assert world.stage("train")["state"] == "Running"
