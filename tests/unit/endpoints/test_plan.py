"""How revisions start, take the traffic, and are deleted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from finetune_api.modelendpoint import ModelEndpointStatus

from tests.unit.endpoints.scenarios import answer_checks, repair_profile, start_checks
from tests.unit.endpoints.world import (
    ANSWER,
    NAME,
    NAMESPACE,
    Crash,
    World,
    artifact,
    endpoint,
    probe,
    profile,
    revision_of,
)

Change = Callable[[World], None]


def test_the_first_reconcile_starts_revision_1_and_sets_every_condition() -> None:
    world = World()
    world.reconcile()
    assert world.names("Deployment") == ["glossary-r1"]
    assert world.status["phase"] == "Deploying"
    assert world.condition("Ready") == ("False", "NoActiveRevision")
    assert world.condition("Reconciling") == ("True", "RollingOut")
    assert world.condition("Stalled") == ("False", "Clear")
    assert world.status["observedGeneration"] == 1
    assert "url" not in world.status
    assert world.find("Service", NAME) is None


def test_ready_pods_take_no_traffic_before_their_checks() -> None:
    world = start_checks()
    world.settle()
    assert world.states() == {1: "Checking"}
    assert world.find("Service", NAME) is None
    assert [request.url for request in world.requests] == ["http://10.0.1.0:8080/v1/models"]


def test_a_pod_with_an_ipv6_address_is_checked() -> None:
    world = start_checks()
    world.set_status(world.need("Pod", "glossary-r1-0"), podIP="fd00::1:9")
    world.settle()
    assert [request.url for request in world.requests] == ["http://[fd00::1:9]:8080/v1/models"]


def test_a_pod_that_lost_its_readiness_gets_no_request() -> None:
    world = start_checks()
    world.set_pod_ready("glossary-r1-0", ready=False)
    world.settle()
    assert world.states() == {1: "Starting"}
    assert world.requests == ()


def test_a_pod_that_is_being_deleted_does_not_count_as_ready() -> None:
    world = World()
    world.roll_out()
    world.mark_terminating(world.need("Pod", "glossary-r1-0"))
    world.settle()
    assert world.condition("Ready") == ("False", "PodsNotReady")


def test_a_revision_takes_the_traffic_after_the_right_answer() -> None:
    world = World()
    world.roll_out()
    assert world.states() == {1: "Active"}
    assert world.status["phase"] == "Ready"
    assert world.status["url"] == "http://glossary.team-a.svc/v1"
    assert world.status["runtime"] == "Deployment"
    assert world.condition("Ready") == ("True", "RevisionActive")
    assert world.condition("Reconciling") == ("False", "Settled")
    pod = world.list("Pod", NAMESPACE)[0]
    assert pod["metadata"]["labels"]["app"] == world.selected_app()
    assert world.status["message"] == "revision 1 answers on 1 of 1 pods"
    assert world.requests == ()


def test_a_new_digest_starts_alongside_the_old_revision_which_keeps_the_traffic() -> None:
    world = World()
    world.roll_out()
    world.edit(artifact=artifact("b"))
    world.settle()
    assert world.names("Deployment") == ["glossary-r1", "glossary-r2"]
    assert world.selected_app() == "glossary-r1"
    assert world.status["phase"] == "Ready"
    assert world.condition("Ready") == ("True", "RevisionActive")
    assert world.condition("Reconciling") == ("True", "RollingOut")
    assert world.states() == {1: "Active", 2: "Starting"}


def test_the_old_revision_is_deleted_30_seconds_after_the_switch() -> None:
    world = World()
    world.roll_out()
    world.edit(artifact=artifact("b"))
    world.roll_out(2)
    assert world.selected_app() == "glossary-r2"
    assert world.states() == {1: "Retired", 2: "Active"}
    assert world.names("Deployment") == ["glossary-r1", "glossary-r2"]
    assert world.requeue_after == 30
    world.tick(29)
    world.settle()
    assert world.names("Deployment") == ["glossary-r1", "glossary-r2"]
    world.tick(1)
    world.settle()
    assert world.names("Deployment") == ["glossary-r2"]
    assert world.requeue_after is None


def test_a_revision_fails_after_two_wrong_answers_and_its_pods_are_deleted() -> None:
    world = start_checks()
    probes = set()
    for _ in range(6):
        world.settle()
        probes |= {request.id for request in world.requests if request.body}
        world.answer_requests(answer="Something else.")
    world.settle()
    assert len(probes) == 2
    assert world.states() == {1: "Failed"}
    assert world.status["phase"] == "Failed"
    assert "'Something else.'" in world.status["message"]
    assert ANSWER in world.status["message"]
    assert world.condition("Stalled") == ("True", "ParityMismatch")
    assert world.names("Deployment") == []
    assert world.find("Service", NAME) is None


def test_a_failed_update_leaves_the_old_revision_serving() -> None:
    world = World()
    world.roll_out()
    world.edit(artifact=artifact("b"), probe=probe("Another answer."))
    world.settle()
    world.make_pods_ready(2)
    answer_checks(world, "Wrong.")
    assert world.states() == {1: "Active", 2: "Failed"}
    assert world.status["phase"] == "Ready"
    assert world.selected_app() == "glossary-r1"
    assert world.condition("Ready") == ("True", "RevisionActive")
    assert world.condition("Stalled") == ("True", "ParityMismatch")
    assert world.condition("Reconciling") == ("False", "Settled")
    assert world.status["message"].startswith(
        "revision 1 answers on 1 of 1 pods; revision 2 failed: ParityMismatch: "
    )
    assert world.names("Deployment") == ["glossary-r1"]


def test_a_failed_revision_is_deleted_only_after_the_status_records_it() -> None:
    world = World()
    world.settle()
    world.add_pods(1)
    world.set_container("glossary-r1-0", restarts=3, running={})
    assert world.reconcile().delete == ()
    assert world.states() == {1: "Failed"}
    assert [ref.name for ref in world.reconcile().delete] == ["glossary-r1"]


def test_a_failed_revision_is_not_retried_by_itself() -> None:
    world = start_checks()
    answer_checks(world, "Wrong.")
    writes = world.writes
    world.tick(3600)
    world.restart()
    world.settle()
    assert world.writes == writes
    assert world.requeue_after is None


@pytest.mark.parametrize(
    "repair",
    [
        pytest.param(lambda world: world.edit(artifact=artifact("b")), id="new artifact"),
        pytest.param(lambda world: world.edit(probe=probe("Wrong.")), id="corrected probe"),
        pytest.param(repair_profile, id="repaired profile"),
    ],
)
def test_a_repair_starts_a_new_revision_after_a_failed_one(repair: Change) -> None:
    world = start_checks()
    answer_checks(world, "Wrong.")
    repair(world)
    world.settle()
    assert world.states() == {1: "Failed", 2: "Starting"}
    assert world.names("Deployment") == ["glossary-r2"]


def test_reverting_the_artifact_before_the_switch_deletes_the_new_revision() -> None:
    world = World()
    world.roll_out()
    world.edit(artifact=artifact("b"))
    world.settle()
    world.edit(artifact=artifact("a"))
    world.settle()
    assert world.states() == {1: "Active", 2: "Retired"}
    assert world.names("Deployment") == ["glossary-r1"]


def test_reverting_the_artifact_after_the_switch_is_a_new_revision() -> None:
    world = World()
    world.roll_out()
    world.edit(artifact=artifact("b"))
    world.roll_out(2)
    world.edit(artifact=artifact("a"))
    world.roll_out(3)
    assert world.states() == {1: "Retired", 2: "Retired", 3: "Active"}


def test_the_predecessor_stays_for_a_while_if_the_time_of_the_switch_cannot_be_read() -> None:
    world = World()
    world.roll_out()
    world.edit(artifact=artifact("b"))
    world.roll_out(2)
    world.restart()
    found = world.need("ModelEndpoint", NAME)
    revisions = [
        {**each, "readyAt": "yesterday"} if each["revision"] == 2 else each
        for each in world.status["revisions"]
    ]
    world.replace_status(found, {**world.status, "revisions": revisions})
    world.settle()
    assert world.names("Deployment") == ["glossary-r1", "glossary-r2"]
    world.tick(29)
    world.settle()
    assert world.names("Deployment") == ["glossary-r1", "glossary-r2"]
    world.tick(1)
    world.settle()
    assert world.names("Deployment") == ["glossary-r2"]


def test_replicas_change_in_place() -> None:
    world = World()
    world.roll_out()
    world.edit(replicas=3)
    world.settle()
    assert world.need("Deployment", "glossary-r1")["spec"]["replicas"] == 3
    assert world.states() == {1: "Active"}
    assert world.condition("Reconciling") == ("True", "RollingOut")
    assert world.status["message"] == "revision 1 answers on 1 of 3 pods"
    world.make_pods_ready(1, 3)
    world.settle()
    assert world.condition("Reconciling") == ("False", "Settled")


def test_replicas_change_in_place_while_a_revision_starts() -> None:
    world = World()
    world.settle()
    world.edit(replicas=2)
    world.settle()
    assert world.need("Deployment", "glossary-r1")["spec"]["replicas"] == 2
    world.make_pods_ready(1)
    world.settle()
    assert world.states() == {1: "Starting"}


@pytest.mark.parametrize("edit", [{"profile": "big"}, {"gpus": 2}])
def test_another_profile_or_number_of_gpus_is_a_new_revision(edit: dict[str, object]) -> None:
    world = World()
    world.load(profile("big", default=False))
    world.roll_out()
    world.edit(**edit)
    world.settle()
    assert world.states() == {1: "Active", 2: "Starting"}


def test_an_upgrade_and_an_edited_profile_leave_an_active_revision_alone() -> None:
    world = World()
    world.roll_out()
    writes = world.writes
    world.settings = type(world.settings)(trainer_image="trainer:v2", serving_image="vllm:v2")
    world.change("AcceleratorProfile", "cpu", {"spec": {"cpuPerDevice": "7"}}, namespace="")
    world.settle()
    assert world.writes == writes


def test_readiness_of_the_endpoint_follows_its_pods() -> None:
    world = World()
    world.roll_out()
    world.set_pod_ready("glossary-r1-0", ready=False)
    world.settle()
    assert world.condition("Ready") == ("False", "PodsNotReady")
    assert world.status["phase"] == "Deploying"
    assert world.status["message"] == "revision 1 is down"
    assert world.states() == {1: "Active"}
    world.set_pod_ready("glossary-r1-0", ready=True)
    world.settle()
    assert world.condition("Ready") == ("True", "RevisionActive")


def delete_children(world: World) -> None:
    world.delete("Deployment", "glossary-r1")
    world.remove("Service", NAME)


def change_selector(world: World) -> None:
    world.change("Service", NAME, {"spec": {"selector": {"app": "postgres"}}})


@pytest.mark.parametrize("damage", [delete_children, change_selector])
def test_children_of_the_active_revision_are_restored(damage: Change) -> None:
    world = World()
    world.roll_out()
    damage(world)
    world.settle()
    assert world.names("Deployment") == ["glossary-r1"]
    assert world.selected_app() == "glossary-r1"


def test_every_pod_is_checked() -> None:
    world = World(endpoint(replicas=3))
    world.settle()
    world.make_pods_ready(1, 3)
    world.settle()
    world.answer_requests()
    world.settle()
    assert sum(request.body is not None for request in world.requests) == 3
    first = next(request.id for request in world.requests if request.body)
    world.answer_requests(answer="Wrong.")
    world.responses[first] = type(world.responses[first])(
        0, 200, {"choices": [{"message": {"content": ANSWER}}]}
    )
    world.settle()
    assert world.states() == {1: "Checking"}
    world.answer_requests(answer="Wrong.")
    world.settle()
    assert world.states() == {1: "Failed"}


def test_without_a_probe_the_model_list_is_enough() -> None:
    manifest = endpoint()
    del manifest["spec"]["probe"]
    world = World(manifest)
    world.settle()
    world.make_pods_ready(1)
    world.settle()
    world.answer_requests()
    world.settle()
    assert world.states() == {1: "Active"}


def test_a_decision_is_empty_if_nothing_has_changed() -> None:
    world = World()
    world.roll_out()
    decision = world.decide()
    assert (decision.create, decision.apply, decision.delete) == ((), (), ())
    assert decision.status == world.status
    assert decision.events == ()


def test_the_children_of_a_deleted_endpoint_are_left_to_garbage_collection() -> None:
    world = World()
    world.roll_out()
    world.mark_terminating(world.need("ModelEndpoint", NAME))
    decision = world.decide()
    assert decision.status is None
    assert (decision.create, decision.apply, decision.delete, decision.requests) == ((), (), (), ())
    uid = world.need("ModelEndpoint", NAME)["metadata"]["uid"]
    for kind, name in (("Deployment", "glossary-r1"), ("Service", NAME)):
        assert world.need(kind, name)["metadata"]["ownerReferences"][0]["uid"] == uid


def test_children_of_an_earlier_endpoint_of_the_same_name_are_not_used() -> None:
    world = World()
    world.roll_out()
    world.remove("ModelEndpoint", NAME)
    again = endpoint()
    again["metadata"]["uid"] = "e0000000-0000-0000-0000-000000000002"
    world.load(again)
    world.settle()
    assert world.condition("Stalled") == ("True", "NameTaken")
    assert world.status["phase"] == "Pending"
    delete_children(world)
    world.roll_out()


def test_the_status_lists_the_newest_ten_revisions_and_the_active_one() -> None:
    world = World()
    world.roll_out()
    for letter in "bcdefbcdefbcdef":
        world.edit(artifact=artifact(letter))
        world.settle()
    listed = [each["revision"] for each in world.status["revisions"]]
    assert listed == [1, *range(8, 17)]
    assert world.names("Deployment") == ["glossary-r1", "glossary-r16"]
    assert ModelEndpointStatus.model_validate(world.status).active_revision == 1


def test_every_start_and_switch_of_a_revision_is_an_event() -> None:
    world = World()
    world.roll_out()
    world.edit(artifact=artifact("b"))
    world.roll_out(2)
    assert [event.reason for event in world.events] == [
        "RevisionStarting",
        "RevisionActive",
        "RevisionStarting",
        "RevisionActive",
    ]


STORY: tuple[Change, ...] = (
    World.roll_out,
    lambda world: world.edit(artifact=artifact("b"), replicas=2),
    lambda world: world.roll_out(2, 2),
    lambda world: world.tick(31),
    World.settle,
)


@pytest.mark.parametrize("writes", range(40))
def test_a_crash_between_any_two_writes_changes_nothing_in_the_end(writes: int) -> None:
    undisturbed, world = World(), World()
    for step in STORY:
        step(undisturbed)
    world.crash_after = writes
    has_crashed = False
    for step in STORY:
        try:
            step(world)
        except Crash:
            has_crashed = True
            world.crash_after = None
            world.restart()
            step(world)
    assert has_crashed or undisturbed.writes <= writes
    assert world.names("Deployment") == undisturbed.names("Deployment") == ["glossary-r2"]
    assert world.status == undisturbed.status
    assert world.selected_app() == "glossary-r2"
    assert {revision_of(pod) for pod in world.list("Pod", NAMESPACE)} == {"2"}


def test_a_lost_status_is_restored_from_the_children() -> None:
    world = World()
    world.roll_out()
    found = dict(world.need("ModelEndpoint", NAME))
    del found["status"]
    world.load(found)
    world.restart()
    world.settle()
    assert world.states() == {1: "Active"}
    assert world.status["url"] == "http://glossary.team-a.svc/v1"
