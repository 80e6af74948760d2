"""An endpoint without spec.artifact serves the model of the youngest job that hands one over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from finetune_api.finetunejob import FineTuneJobStatus
from finetune_operator import exported_models
from finetune_operator.decision import EventRecord
from finetune_operator.endpoints.plan import build_rejected_endpoint_status

from tests.unit.endpoints.scenarios import answer_checks, repair_profile
from tests.unit.endpoints.world import (
    ANSWER,
    NAME,
    World,
    artifact,
    digest,
    endpoint,
    exporting_job,
    following,
    probe,
    profile,
)


def serving(letter: str = "a", minute: int = 0) -> World:
    """An endpoint that serves the model of a job."""
    world = World(following())
    world.load(exporting_job(letter, minute))
    world.roll_out()
    return world


def served(world: World) -> list[str]:
    """The jobs whose models the revisions serve, oldest revision first."""
    return [each["uri"].rpartition("/")[2] for each in world.status["revisions"]]


def test_without_a_model_it_waits_for_a_job_and_is_not_stalled() -> None:
    world = World(following())
    world.settle()
    assert world.status["phase"] == "Pending"
    assert world.condition("Reconciling") == ("True", "WaitingForJob")
    assert world.condition("Ready") == ("False", "WaitingForJob")
    assert world.condition("Stalled") == ("False", "Clear")
    assert world.status["message"] == (
        "waits for the model of a FineTuneJob with serve.endpoint: glossary"
    )
    assert world.events == []
    assert world.requeue_after is None, "a job wakes it"
    assert "latest" not in world.status


def test_the_model_of_a_job_becomes_the_first_revision_with_its_probe() -> None:
    world = World(following())
    world.settle()
    world.load(exporting_job("a"))
    world.settle()
    assert world.names("Deployment") == ["glossary-r1"]
    assert world.status["latest"] == {
        "job": {"name": "job-a", "uid": "uid-job-a", "createdAt": "2026-11-21T11:00:00Z"},
        **artifact("a"),
        "probe": probe(),
    }
    world.make_pods_ready(1)
    world.settle()
    world.answer_requests()
    world.settle()
    (request,) = [each for each in world.requests if each.body]
    assert request.body is not None
    assert request.body["messages"] == probe()["messages"]
    world.answer_requests(answer=ANSWER)
    world.settle()
    assert world.states() == {1: "Active"}
    assert "artifact" not in world.need("ModelEndpoint", NAME)["spec"]


def test_a_wrong_answer_to_the_probe_of_the_job_fails_the_revision() -> None:
    world = World(following())
    world.load(exporting_job("a"))
    world.settle()
    world.make_pods_ready(1)
    answer_checks(world, "Wrong.")
    assert world.states() == {1: "Failed"}
    assert world.condition("Stalled") == ("True", "ParityMismatch")


def test_a_job_without_a_probe_is_served_after_the_check_of_the_model_list() -> None:
    world = World(following())
    world.load(exporting_job("a", probe=None))
    world.settle()
    world.make_pods_ready(1)
    world.settle()
    world.answer_requests()
    world.settle()
    assert world.states() == {1: "Active"}


def test_a_younger_job_is_the_next_revision() -> None:
    world = serving("a", minute=1)
    world.load(exporting_job("b", minute=2))
    world.roll_out(2)
    assert served(world) == ["job-a", "job-b"]
    assert world.states() == {1: "Retired", 2: "Active"}


def test_an_older_job_that_ends_late_changes_nothing() -> None:
    world = serving("b", minute=2)
    writes = world.writes
    world.load(exporting_job("a", minute=1))
    world.settle()
    assert world.writes == writes
    assert world.status["latest"]["job"]["name"] == "job-b"


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_of_two_jobs_of_the_same_second_the_name_decides(order: str) -> None:
    world = World(following())
    for letter in order:
        world.load(exporting_job(letter))
        world.settle()
    assert world.status["latest"]["job"]["name"] == "job-b"


def test_the_statuses_of_older_jobs_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading one takes a quarter of a millisecond, and a namespace may keep hundreds of jobs."""
    read = []

    class Recorded(FineTuneJobStatus):
        @classmethod
        def from_stored(cls, written: Mapping[str, Any] | None) -> Recorded:
            read.append(written)
            return super().from_stored(written)

    monkeypatch.setattr(exported_models, "FineTuneJobStatus", Recorded)
    world = World(following())
    for minute, letter in enumerate("abcdef"):
        world.load(exporting_job(letter, minute))
    world.reconcile()
    assert world.status["latest"]["job"]["name"] == "job-f"
    assert len(read) == 1
    world.reconcile()
    assert len(read) == 1


UNFINISHED: dict[str, dict[str, Any]] = {
    "no artifact": {"artifact": None},
    "not handed over": {"stages": [{"name": "serve", "state": "Pending", "attempt": 0}]},
    "no stages": {"stages": None},
}


@pytest.mark.parametrize("status", UNFINISHED.values(), ids=UNFINISHED)
def test_a_job_that_has_not_handed_its_model_over_does_not_count(status: dict[str, Any]) -> None:
    world = serving("a")
    writes = world.writes
    world.load(exporting_job("b", minute=9, **status))
    world.settle()
    assert world.writes == writes


def test_jobs_of_other_endpoints_and_namespaces_do_not_count() -> None:
    world = serving("a")
    writes = world.writes
    other, elsewhere = exporting_job("b", minute=8), exporting_job("c", minute=9)
    other["spec"]["serve"]["endpoint"] = "another"
    elsewhere["metadata"]["namespace"] = "team-b"
    without = exporting_job("d", minute=9)
    del without["spec"]["serve"]
    for job in (other, elsewhere, without):
        world.load(job)
    world.settle()
    assert world.writes == writes


def test_the_model_outlives_its_job_and_a_restart_of_the_operator() -> None:
    world = serving("b", minute=2)
    world.load(exporting_job("a", minute=1))
    writes = world.writes
    world.remove("FineTuneJob", "job-b")
    world.restart()
    world.settle()
    assert world.writes == writes
    assert served(world) == ["job-b"]


def test_after_the_deletion_of_the_job_a_new_revision_is_still_compared_with_its_probe() -> None:
    world = World(following())
    world.load(exporting_job("a"))
    world.settle()
    world.make_pods_ready(1)
    answer_checks(world, "Wrong.")
    world.remove("FineTuneJob", "job-a")
    repair_profile(world)
    world.settle()
    world.make_pods_ready(2)
    answer_checks(world, "Wrong.")
    assert world.states() == {1: "Failed", 2: "Failed"}


def test_the_model_is_recorded_even_where_no_revision_can_be_created() -> None:
    world = World(following())
    world.remove("AcceleratorProfile", "cpu")
    world.load(exporting_job("a"))
    world.settle()
    assert world.condition("Stalled") == ("True", "ProfileNotFound")
    world.remove("FineTuneJob", "job-a")
    world.load(profile())
    world.roll_out()
    assert served(world) == ["job-a"]


def test_a_rejected_write_keeps_the_recorded_model() -> None:
    world = serving("a")
    found = world.need("ModelEndpoint", NAME)
    why = EventRecord("Warning", "Forbidden", "exceeded quota")
    status = build_rejected_endpoint_status(found, why, world.now)
    assert status is not None
    assert status["latest"] == world.status["latest"]


def test_an_artifact_in_the_spec_is_served_whatever_jobs_export() -> None:
    world = World(endpoint("c"))
    world.roll_out()
    writes = world.writes
    world.load(exporting_job("d"))
    world.settle()
    assert served(world) == ["job-c"]
    assert world.status["latest"]["job"]["name"] == "job-d"
    assert world.writes == writes + 1, "only the status"


def test_pinning_and_unpinning_go_back_to_the_latest_model_also_without_its_job() -> None:
    world = serving("b")
    world.edit(artifact=artifact("a"))
    world.roll_out(2)
    world.remove("FineTuneJob", "job-b")
    world.edit(artifact=None)
    world.roll_out(3)
    assert served(world) == ["job-b", "job-a", "job-b"]


def test_pinning_what_is_served_restarts_nothing() -> None:
    world = serving("a")
    world.edit(artifact=artifact("a"))
    world.settle()
    assert world.states() == {1: "Active"}
    world.edit(artifact=None)
    world.settle()
    assert world.states() == {1: "Active"}
    assert world.condition("Reconciling") == ("False", "Settled")


def test_without_any_model_left_the_active_revision_keeps_the_traffic() -> None:
    world = World()
    world.roll_out()
    world.edit(artifact=None, probe=None)
    world.settle()
    assert world.selected_app() == "glossary-r1"
    assert world.condition("Ready") == ("True", "RevisionActive")
    assert world.condition("Reconciling") == ("True", "WaitingForJob")
    assert world.status["message"].startswith("revision 1 answers on 1 of 1 pods; waits for")


def test_an_address_that_leaves_the_claim_is_reported() -> None:
    world = World(following())
    bad = {"uri": "pvc://claim/../other", "digest": digest("a"), "bytes": 1}
    world.load(exporting_job("a", artifact=bad))
    world.settle()
    assert world.condition("Stalled") == ("True", "InvalidArtifact")


def test_the_scale_subresource_has_the_pods_of_the_active_revision() -> None:
    world = World(following())
    world.settle()
    assert world.status["replicas"] == 0
    assert "selector" not in world.status
    world.load(exporting_job("a"))
    world.roll_out()
    world.load(exporting_job("b", minute=1))
    world.settle()
    world.add_pods(2)
    world.settle()
    assert world.status["replicas"] == 1
    selector = dict(each.split("=") for each in world.status["selector"].split(","))
    pods = [
        pod["metadata"]["name"]
        for pod in world.list("Pod")
        if selector.items() <= pod["metadata"]["labels"].items()
    ]
    assert pods == ["glossary-r1-0"]


def test_a_pod_that_was_evicted_is_no_replica() -> None:
    world = serving("a")
    world.set_status(world.need("Pod", "glossary-r1-0"), phase="Failed")
    world.settle()
    assert world.status["replicas"] == 0
