"""How revisions come, take the traffic, and go."""

from __future__ import annotations

import pytest
from finetune_api.modelendpoint import ModelEndpointStatus

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


def test_first_look_starts_revision_1_and_tells_every_condition() -> None:
    world = World()
    world.reconcile()
    assert world.names("Deployment") == ["glossary-r1"]
    assert world.status["phase"] == "Deploying"
    assert world.condition("Ready") == ("False", "NoActiveRevision")
    assert world.condition("Reconciling") == ("True", "RollingOut")
    assert world.condition("Stalled") == ("False", "Clear")
    assert world.status["observedGeneration"] == 1
    assert "url" not in world.status
    assert world.get("Service", NAME) is None


def test_ready_pods_alone_take_no_traffic() -> None:
    world = World()
    world.settle()
    world.pods_are_ready(1)
    world.settle()
    assert world.states() == {1: "Checking"}
    assert world.get("Service", NAME) is None
    assert [ask.url for ask in world.asks] == ["http://10.0.1.0:8080/v1/models"]


def test_ready_deployment_whose_pod_is_lost_by_now_is_not_asked() -> None:
    world = World()
    world.settle()
    world.pods_are_ready(1)
    world.pod_is("glossary-r1-0", ready=False)
    world.settle()
    assert world.states() == {1: "Starting"}
    assert world.asks == ()


def test_pod_that_is_being_deleted_counts_no_more() -> None:
    world = World()
    world.rolled_out()
    leaving = {"metadata": {"deletionTimestamp": "2026-11-21T12:00:00Z"}}
    world.change("Pod", "glossary-r1-0", leaving)
    world.settle()
    assert world.condition("Ready") == ("False", "PodsNotReady")


def test_revision_takes_the_traffic_after_the_right_answer() -> None:
    world = World()
    world.rolled_out()
    assert world.states() == {1: "Active"}
    assert world.status["phase"] == "Ready"
    assert world.status["url"] == "http://glossary.team-a.svc/v1"
    assert world.status["runtime"] == "Deployment"
    assert world.condition("Ready") == ("True", "RevisionActive")
    assert world.condition("Reconciling") == ("False", "Settled")
    pod = world.cache.list("Pod", NAMESPACE)[0]
    assert pod["metadata"]["labels"]["app"] == world.selected()
    assert world.status["message"] == "revision 1 answers on 1 of 1 pods"
    assert world.asks == ()


def test_new_digest_runs_beside_the_old_one_which_keeps_the_traffic() -> None:
    world = World()
    world.rolled_out()
    world.edit(artifact=artifact("b"))
    world.settle()
    assert world.names("Deployment") == ["glossary-r1", "glossary-r2"]
    assert world.selected() == "glossary-r1"
    assert world.status["phase"] == "Ready"
    assert world.condition("Ready") == ("True", "RevisionActive")
    assert world.condition("Reconciling") == ("True", "RollingOut")
    assert world.states() == {1: "Active", 2: "Starting"}


def test_old_revision_goes_a_short_while_after_the_switch() -> None:
    world = World()
    world.rolled_out()
    world.edit(artifact=artifact("b"))
    world.rolled_out(2)
    assert world.selected() == "glossary-r2"
    assert world.states() == {1: "Retired", 2: "Active"}
    assert world.names("Deployment") == ["glossary-r1", "glossary-r2"]
    assert world.requeue_after == 30
    world.later(29)
    world.settle()
    assert world.names("Deployment") == ["glossary-r1", "glossary-r2"]
    world.later(1)
    world.settle()
    assert world.names("Deployment") == ["glossary-r2"]
    assert world.requeue_after is None


def test_wrong_answer_fails_the_revision_after_two_tries_and_frees_its_pods() -> None:
    world = World()
    world.settle()
    world.pods_are_ready(1)
    asked = set()
    for _ in range(6):
        world.settle()
        asked |= {ask.id for ask in world.asks if ask.body}
        world.answer_asks(answer="Something else.")
    world.settle()
    assert len(asked) == 2
    assert world.states() == {1: "Failed"}
    assert world.status["phase"] == "Failed"
    assert "'Something else.'" in world.status["message"]
    assert ANSWER in world.status["message"]
    assert world.condition("Stalled") == ("True", "ParityMismatch")
    assert world.names("Deployment") == []
    assert world.get("Service", NAME) is None


def test_failed_update_leaves_the_old_revision_serving() -> None:
    world = World()
    world.rolled_out()
    world.edit(artifact=artifact("b"), probe=probe("Another answer."))
    world.settle()
    world.pods_are_ready(2)
    for _ in range(6):
        world.settle()
        world.answer_asks(answer="Wrong.")
    world.settle()
    assert world.states() == {1: "Active", 2: "Failed"}
    assert world.status["phase"] == "Ready"
    assert world.selected() == "glossary-r1"
    assert world.condition("Ready") == ("True", "RevisionActive")
    assert world.condition("Stalled") == ("True", "ParityMismatch")
    assert world.condition("Reconciling") == ("False", "Settled")
    assert world.status["message"].startswith(
        "revision 1 answers on 1 of 1 pods; revision 2 failed: ParityMismatch: "
    )
    assert world.names("Deployment") == ["glossary-r1"]


def test_failed_revision_is_taken_away_only_after_the_status_says_so() -> None:
    world = World()
    world.settle()
    world.pods_appear(1)
    world.container_is("glossary-r1-0", restarts=3, running={})
    assert world.reconcile().delete == ()
    assert world.states() == {1: "Failed"}
    assert [ref.name for ref in world.reconcile().delete] == ["glossary-r1"]


def test_failed_revision_is_not_tried_again_by_itself() -> None:
    world = World()
    world.settle()
    world.pods_are_ready(1)
    for _ in range(6):
        world.settle()
        world.answer_asks(answer="Wrong.")
    world.settle()
    writes = world.writes
    world.later(3600)
    world.restart()
    world.settle()
    assert world.writes == writes
    assert world.requeue_after is None


@pytest.mark.parametrize(
    "repair",
    [
        lambda world: world.edit(artifact=artifact("b")),
        lambda world: world.edit(probe=probe("Wrong.")),
        lambda world: world.change(
            "AcceleratorProfile", "cpu", {"spec": {"hostMemoryPerDevice": "8Gi"}}, namespace=""
        ),
    ],
    ids=["new artifact", "corrected probe", "profile repaired"],
)
def test_failed_revision_is_followed_by_a_new_one_when_something_is_repaired(repair) -> None:  # type: ignore[no-untyped-def]
    world = World()
    world.settle()
    world.pods_are_ready(1)
    for _ in range(6):
        world.settle()
        world.answer_asks(answer="Wrong.")
    world.settle()
    repair(world)
    world.settle()
    assert world.states() == {1: "Failed", 2: "Starting"}
    assert world.names("Deployment") == ["glossary-r2"]


def test_going_back_before_the_switch_drops_the_newcomer_at_once() -> None:
    world = World()
    world.rolled_out()
    world.edit(artifact=artifact("b"))
    world.settle()
    world.edit(artifact=artifact("a"))
    world.settle()
    assert world.states() == {1: "Active", 2: "Retired"}
    assert world.names("Deployment") == ["glossary-r1"]


def test_going_back_after_the_switch_is_a_new_revision() -> None:
    world = World()
    world.rolled_out()
    world.edit(artifact=artifact("b"))
    world.rolled_out(2)
    world.edit(artifact=artifact("a"))
    world.rolled_out(3)
    assert world.states() == {1: "Retired", 2: "Retired", 3: "Active"}


def test_replicas_change_in_place() -> None:
    world = World()
    world.rolled_out()
    world.edit(replicas=3)
    world.settle()
    assert world.need("Deployment", "glossary-r1")["spec"]["replicas"] == 3
    assert world.states() == {1: "Active"}
    assert world.condition("Reconciling") == ("True", "RollingOut")
    assert world.status["message"] == "revision 1 answers on 1 of 3 pods"
    world.pods_are_ready(1, 3)
    world.settle()
    assert world.condition("Reconciling") == ("False", "Settled")


def test_replicas_change_while_starting_too() -> None:
    world = World()
    world.settle()
    world.edit(replicas=2)
    world.settle()
    assert world.need("Deployment", "glossary-r1")["spec"]["replicas"] == 2
    world.pods_are_ready(1)
    world.settle()
    assert world.states() == {1: "Starting"}


@pytest.mark.parametrize("edit", [{"profile": "big"}, {"gpus": 2}])
def test_another_pool_or_size_is_a_new_revision(edit: dict[str, object]) -> None:
    world = World()
    world.put(profile("big", default=False))
    world.rolled_out()
    world.edit(**edit)
    world.settle()
    assert world.states() == {1: "Active", 2: "Starting"}


def test_upgrade_or_edited_profile_leaves_a_serving_revision_alone() -> None:
    world = World()
    world.rolled_out()
    writes = world.writes
    world.settings = type(world.settings)(trainer_image="trainer:v2", serving_image="vllm:v2")
    world.change("AcceleratorProfile", "cpu", {"spec": {"cpuPerDevice": "7"}}, namespace="")
    world.settle()
    assert world.writes == writes


def test_lost_pods_make_it_unready_and_their_return_makes_it_ready() -> None:
    world = World()
    world.rolled_out()
    world.pod_is("glossary-r1-0", ready=False)
    world.settle()
    assert world.condition("Ready") == ("False", "PodsNotReady")
    assert world.status["phase"] == "Deploying"
    assert world.status["message"] == "revision 1 is down"
    assert world.states() == {1: "Active"}
    world.pod_is("glossary-r1-0", ready=True)
    world.settle()
    assert world.condition("Ready") == ("True", "RevisionActive")


def test_deleted_children_of_the_active_revision_come_back() -> None:
    world = World()
    world.rolled_out()
    world.remove("Deployment", "glossary-r1")
    world.remove("Service", NAME)
    world.settle()
    assert world.names("Deployment") == ["glossary-r1"]
    assert world.selected() == "glossary-r1"


def test_bent_selector_is_set_straight() -> None:
    world = World()
    world.rolled_out()
    world.change("Service", NAME, {"spec": {"selector": {"app": "postgres"}}})
    world.settle()
    assert world.selected() == "glossary-r1"


def test_every_pod_is_asked() -> None:
    world = World(endpoint(replicas=3))
    world.settle()
    world.pods_are_ready(1, 3)
    world.settle()
    world.answer_asks()
    world.settle()
    assert sum(ask.body is not None for ask in world.asks) == 3
    first = next(ask.id for ask in world.asks if ask.body)
    world.answer_asks(answer="Wrong.")
    world.answers[first] = type(world.answers[first])(
        0, 200, {"choices": [{"message": {"content": ANSWER}}]}
    )
    world.settle()
    assert world.states() == {1: "Checking"}
    world.answer_asks(answer="Wrong.")
    world.settle()
    assert world.states() == {1: "Failed"}


def test_without_a_probe_the_listing_is_enough() -> None:
    manifest = endpoint()
    del manifest["spec"]["probe"]
    world = World(manifest)
    world.settle()
    world.pods_are_ready(1)
    world.settle()
    world.answer_asks()
    world.settle()
    assert world.states() == {1: "Active"}


def test_plan_without_news_asks_for_nothing() -> None:
    world = World()
    world.rolled_out()
    decision = world.decide()
    assert (decision.create, decision.apply, decision.delete) == ((), (), ())
    assert decision.status == world.status
    assert decision.events == ()


def test_endpoint_that_is_being_deleted_is_left_to_its_owner_references() -> None:
    world = World()
    world.rolled_out()
    world.change("ModelEndpoint", NAME, {"metadata": {"deletionTimestamp": "2026-11-21T12:00:00Z"}})
    decision = world.decide()
    assert decision.status is None
    assert (decision.create, decision.apply, decision.delete, decision.asks) == ((), (), (), ())
    uid = world.need("ModelEndpoint", NAME)["metadata"]["uid"]
    for kind, name in (("Deployment", "glossary-r1"), ("Service", NAME)):
        assert world.need(kind, name)["metadata"]["ownerReferences"][0]["uid"] == uid


def test_children_of_an_earlier_endpoint_of_the_same_name_are_not_ours() -> None:
    world = World()
    world.rolled_out()
    world.remove("ModelEndpoint", NAME)
    again = endpoint()
    again["metadata"]["uid"] = "e0000000-0000-0000-0000-000000000002"
    world.put(again)
    world.settle()
    assert world.condition("Stalled") == ("True", "NameTaken")
    assert world.status["phase"] == "Pending"
    world.remove("Deployment", "glossary-r1")
    world.remove("Service", NAME)
    world.rolled_out()


def test_only_the_newest_ten_revisions_are_told_and_always_the_active_one() -> None:
    world = World()
    world.rolled_out()
    for letter in "bcdefbcdefbcdef":
        world.edit(artifact=artifact(letter))
        world.settle()
    told = [each["revision"] for each in world.status["revisions"]]
    assert told == [1, *range(8, 17)]
    assert world.names("Deployment") == ["glossary-r1", "glossary-r16"]
    assert ModelEndpointStatus.model_validate(world.status).active_revision == 1


def test_events_tell_the_story() -> None:
    world = World()
    world.rolled_out()
    world.edit(artifact=artifact("b"))
    world.rolled_out(2)
    assert [event.reason for event in world.events] == [
        "RevisionStarting",
        "RevisionActive",
        "RevisionStarting",
        "RevisionActive",
    ]


def _story(world: World) -> None:
    world.rolled_out()
    world.edit(artifact=artifact("b"), replicas=2)
    world.rolled_out(2, 2)
    world.later(31)
    world.settle()


@pytest.mark.parametrize("writes", range(40))
def test_crash_between_any_two_writes_changes_nothing_in_the_end(writes: int) -> None:
    undisturbed, world = World(), World()
    _story(undisturbed)
    world.crash_after = writes
    steps = [
        world.rolled_out,
        lambda: world.edit(artifact=artifact("b"), replicas=2),
        lambda: world.rolled_out(2, 2),
        lambda: world.later(31),
        world.settle,
    ]
    crashed = False
    for step in steps:
        try:
            step()
        except Crash:
            crashed = True
            world.crash_after = None
            world.restart()
            step()
    assert crashed or undisturbed.writes <= writes
    assert world.names("Deployment") == undisturbed.names("Deployment") == ["glossary-r2"]
    assert world.status == undisturbed.status
    assert world.selected() == "glossary-r2"
    assert {revision_of(pod) for pod in world.cache.list("Pod", NAMESPACE)} == {"2"}


def test_lost_status_is_told_again_from_the_children() -> None:
    world = World()
    world.rolled_out()
    found = dict(world.need("ModelEndpoint", NAME))
    del found["status"]
    world.put(found)
    world.restart()
    world.settle()
    assert world.states() == {1: "Active"}
    assert world.status["url"] == "http://glossary.team-a.svc/v1"
