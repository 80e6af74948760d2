"""The hand-over to a ModelEndpoint."""

from typing import Any

import pytest
from finetune_api.modelendpoint import ModelEndpointSpec
from finetune_operator.decision import Manifest

from tests.unit.jobs.world import DIGEST, NAMESPACE, PROBE, World, job_manifest

OTHER = "sha256:" + "cd" * 32
OWN = {"uri": "pvc://finetune-workspace/artifacts/glossary-1b4e28ba", "digest": DIGEST}
PINNED = {"uri": "pvc://finetune-workspace/artifacts/old", "digest": OTHER}


def endpoint(world: World) -> dict[str, Any]:
    found = world.get("ModelEndpoint", NAMESPACE, "glossary")
    assert found is not None
    return dict(found["spec"])


def add_endpoint(world: World, **spec: Any) -> None:
    """A person or a GitOps tool applies the endpoint."""
    found = world.find("ModelEndpoint", "glossary") or {}
    metadata = {"name": "glossary", "namespace": NAMESPACE, "uid": "ep"}
    world.load({**found, "kind": "ModelEndpoint", "metadata": metadata, "spec": spec})


def other_job(world: World, created: str, **status: Any) -> Manifest:
    """Another job of the endpoint, which has exported its model."""
    job = job_manifest()
    job["metadata"] |= {"name": "other", "uid": "other", "creationTimestamp": created}
    artifact = {"uri": "pvc://w/other", "digest": DIGEST, "bytes": 1}
    return world.load({**job, "status": {"artifact": artifact, **status}})


def test_a_new_endpoint_follows_its_jobs_and_gets_profile_and_devices_and_no_owner() -> None:
    world = World()
    world.run_until("serve")
    ModelEndpointSpec.model_validate(endpoint(world))
    assert endpoint(world) == {"profile": "cpu", "gpus": 1}
    found = world.get("ModelEndpoint", NAMESPACE, "glossary")
    assert found is not None
    assert "ownerReferences" not in found["metadata"]
    assert world.status["phase"] == "Deploying"


def test_the_model_is_handed_over_once_the_endpoint_exists() -> None:
    world = World()
    world.run_until("export")
    world.add_pods("glossary-export-1")
    world.succeed("export")
    decision = world.reconcile()
    assert [each["kind"] for each in decision.create] == ["ModelEndpoint"]
    assert world.stage("serve")["attempt"] == 0
    world.reconcile()
    assert world.stage("serve")["attempt"] == 1
    assert world.status["artifact"] == {**OWN, "bytes": 269060552}
    assert world.status["probe"] == PROBE


@pytest.mark.parametrize("spec", [{}, {"replicas": 3, "profile": "l4", "gpus": 2}])
def test_an_endpoint_that_exists_is_never_written_to(spec: dict[str, Any]) -> None:
    world = World()
    add_endpoint(world, **spec)
    before = world.need("ModelEndpoint", "glossary")
    world.run_until("serve")
    assert world.need("ModelEndpoint", "glossary") == before
    assert world.stage("serve")["attempt"] == 1


def test_an_endpoint_that_is_pinned_to_another_model_stalls_the_job() -> None:
    world = World()
    add_endpoint(world, artifact=PINNED)
    world.run_until("serve")
    assert world.condition("Stalled")["reason"] == "EndpointPinned"
    assert world.condition("Reconciling")["status"] == "False"
    for part in (PINNED["uri"], OWN["uri"], OWN["digest"], "remove serve"):
        assert part in world.status["message"]
    assert world.stage("serve")["attempt"] == 0, "so that serve may still change"
    assert endpoint(world)["artifact"] == PINNED


def test_a_pinned_endpoint_that_begins_to_follow_gets_the_model() -> None:
    world = World()
    add_endpoint(world, artifact=PINNED)
    world.run_until("serve")
    add_endpoint(world)
    world.settle()
    assert world.condition("Stalled")["status"] == "False"
    assert world.stage("serve")["attempt"] == 1


def test_an_endpoint_that_is_pinned_to_the_models_artifact_serves_the_job() -> None:
    world = World()
    add_endpoint(world, artifact=PINNED)
    world.run_until("serve")
    add_endpoint(world, artifact=OWN)
    world.settle()
    assert world.stage("serve")["attempt"] == 1
    world.serve()
    world.settle()
    assert world.status["phase"] == "Succeeded"
    assert "there was no probe" in world.stage("serve")["message"], "the spec has none"


def test_a_job_whose_pinned_endpoint_is_taken_out_of_it_succeeds_with_its_artifact() -> None:
    world = World()
    add_endpoint(world, artifact=PINNED)
    world.run_until("serve")
    world.edit(serve=None)
    world.settle()
    assert world.status["phase"] == "Succeeded"


def test_of_the_jobs_that_wait_for_a_pinned_endpoint_only_the_youngest_goes_on_waiting() -> None:
    world = World()
    add_endpoint(world, artifact=PINNED)
    world.run_until("serve")
    other_job(world, "2026-01-05T11:00:00Z")
    world.settle()
    assert world.condition("Stalled")["reason"] == "EndpointPinned"
    other_job(world, "2026-01-05T13:00:00Z")
    world.settle()
    assert world.status["failure"]["reason"] == "Superseded"
    assert "job other, which is younger" in world.status["failure"]["message"]


def test_job_waits_until_its_own_digest_takes_the_traffic() -> None:
    world = World()
    world.run_until("serve")
    world.serve(digest=OTHER)
    world.settle()
    assert world.status["phase"] == "Deploying"
    world.serve("Checking", message="asking the probe")
    world.settle()
    assert "revision 1 is Checking: asking the probe" in world.status["message"]
    world.serve()
    world.settle()
    assert world.status["phase"] == "Succeeded"


def test_a_job_without_a_probe_is_served_and_shows_that_nothing_was_compared() -> None:
    world = World()
    world.run_until("evaluate")
    world.add_pods("glossary-evaluate-1")
    world.settle()
    world.succeed("evaluate", probe=None)
    world.settle()
    world.run_stage("export")
    assert "probe" not in world.status
    world.serve()
    world.settle()
    assert world.status["phase"] == "Succeeded"
    assert "there was no probe" in world.stage("serve")["message"]


def test_failed_revision_fails_the_job_with_the_endpoints_message() -> None:
    world = World()
    world.run_until("serve")
    world.serve("Failed", message="the probe got another answer")
    world.settle()
    failure = world.status["failure"]
    assert failure["reason"] == "DeploymentFailed"
    assert "the probe got another answer" in failure["message"]
    assert failure["stage"] == "serve"
    assert world.status["phase"] == "Failed"


def test_a_job_waits_while_its_endpoint_tries_again() -> None:
    world = World()
    world.run_until("serve")
    world.serve("Failed", message="CrashLoop: it ended", retry_at=world.time(60))
    world.settle()
    assert world.status["phase"] == "Deploying"
    assert world.status["message"] == "endpoint glossary: revision 1: CrashLoop: it ended"
    assert world.condition("Reconciling")["status"] == "True"
    world.serve()
    world.settle()
    assert world.status["phase"] == "Succeeded"


def test_a_job_whose_endpoint_follows_a_younger_one_was_superseded() -> None:
    world = World()
    world.run_until("serve")
    world.serve("Checking", latest=other_job(world, "2026-01-05T13:00:00Z"))
    world.settle()
    failure = world.status["failure"]
    assert (failure["stage"], failure["reason"]) == ("serve", "Superseded")
    assert "job other, which is younger" in failure["message"]
    assert OWN["uri"] in failure["remedy"]


def test_a_job_whose_endpoint_still_follows_an_older_one_waits() -> None:
    world = World()
    world.run_until("serve")
    world.serve("Checking", latest=other_job(world, "2026-01-05T11:00:00Z"))
    world.settle()
    assert world.status["phase"] == "Deploying"


def test_a_job_whose_endpoint_is_pinned_to_another_model_after_the_hand_over_was_superseded() -> (
    None
):
    world = World()
    world.run_until("serve")
    world.serve("Checking")
    add_endpoint(world, artifact=PINNED)
    world.settle()
    assert world.status["failure"]["reason"] == "Superseded"
    assert endpoint(world)["artifact"] == PINNED


@pytest.mark.parametrize("state", ["Active", "Failed"])
@pytest.mark.parametrize("artifact", [None, OWN, PINNED], ids=["follows", "own", "other"])
def test_a_job_does_not_end_before_its_endpoint_has_recorded_its_model(
    state: str, artifact: dict[str, str] | None
) -> None:
    """The revision is of a time when the endpoint was pinned to the model. A job that ends may be
    deleted at once, and the endpoint would go back to the older model."""
    world = World()
    world.run_until("serve")
    spec = {"artifact": artifact} if artifact else {}
    world.serve(state, latest=other_job(world, "2026-01-05T11:00:00Z"))
    add_endpoint(world, **spec)
    world.settle()
    assert world.stage("serve")["attempt"] == 1
    assert world.status["phase"] == "Deploying"
    world.serve(state)
    add_endpoint(world, **spec)
    world.settle()
    assert world.status["phase"] in ("Succeeded", "Failed")


@pytest.mark.parametrize("how", ["pinned", "followed"])
def test_a_job_whose_model_had_taken_the_traffic_before_it_was_replaced_succeeds(how: str) -> None:
    world = World()
    world.run_until("serve")
    younger = other_job(world, "2026-01-05T13:00:00Z")
    world.serve(latest=younger if how == "followed" else None)
    if how == "pinned":
        add_endpoint(world, artifact=PINNED)
    world.settle()
    assert world.status["phase"] == "Succeeded"


def test_a_revision_of_another_job_with_the_same_content_is_not_the_jobs() -> None:
    world = World()
    world.run_until("serve")
    world.serve()
    found = world.need("ModelEndpoint", "glossary")
    (revision,) = found["status"]["revisions"]
    revisions = [{**revision, "uri": "pvc://w/other"}]
    world.replace_status(found, {**found["status"], "revisions": revisions})
    world.settle()
    assert world.status["phase"] == "Deploying"


def test_missing_serving_profile_stalls_only_the_serving() -> None:
    world = World(job_manifest(serve={"endpoint": "glossary", "profile": "later"}))
    world.run_until("serve")
    assert world.condition("Stalled")["reason"] == "ProfileNotFound"
    assert world.status["artifact"]["digest"] == DIGEST
    world.add_profile("later", {"memoryPerDevice": "4Gi"})
    world.settle()
    assert endpoint(world)["profile"] == "later"


def test_model_that_could_not_be_served_is_refused_before_the_training() -> None:
    world = World(job_manifest(serve={"endpoint": "glossary", "profile": "tiny"}))
    world.add_profile("tiny", {"resourceName": "example.com/npu", "memoryPerDevice": "1Gi"})
    world.run_until("train")
    assert world.status["failure"]["stage"] == "serve"
    assert world.status["failure"]["reason"] == "DoesNotFit"
    assert world.names("Job") == ["glossary-prepare-1"]


def test_whether_a_model_fits_is_decided_by_the_profile_of_an_endpoint_that_exists() -> None:
    world = World(job_manifest(serve={"endpoint": "glossary", "profile": "tiny"}))
    world.add_profile("tiny", {"resourceName": "example.com/npu", "memoryPerDevice": "1Gi"})
    add_endpoint(world, profile="cpu")
    world.run_until("serve")
    assert world.status["phase"] == "Deploying"
    world = World(job_manifest(serve={"endpoint": "glossary", "profile": "cpu"}))
    world.add_profile("tiny", {"resourceName": "example.com/npu", "memoryPerDevice": "1Gi"})
    add_endpoint(world, profile="tiny")
    world.run_until("train")
    assert world.status["failure"]["reason"] == "DoesNotFit"


STAGES = ["prepare", "train", "evaluate", "export"]


def finish_stages(world: World, first: str) -> None:
    """This stage, of which nothing has run yet, and those after it."""
    for stage in STAGES[STAGES.index(first) :]:
        world.run_stage(stage)
    world.settle()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("before", [None, {"endpoint": "other"}])
def test_an_endpoint_named_or_exchanged_while_the_job_runs_gets_the_model(
    stage: str, before: dict[str, str] | None
) -> None:
    world = World(job_manifest(serve=before))
    world.run_until(stage)
    world.edit(serve={"endpoint": "glossary"})
    finish_stages(world, stage)
    assert world.names("ModelEndpoint") == ["glossary"]
    world.serve()
    world.settle()
    assert world.status["phase"] == "Succeeded"
    assert world.status["endpoint"]["name"] == "glossary"


@pytest.mark.parametrize("stage", [*STAGES, "serve"])
def test_an_endpoint_taken_back_before_the_hand_over_gets_nothing(stage: str) -> None:
    world = World()
    if stage == "serve":
        world.run_until("export")
        world.add_pods("glossary-export-1")
        world.succeed("export")
    else:
        world.run_until(stage)
    world.edit(serve=None)
    if stage != "serve":
        finish_stages(world, stage)
    world.settle()
    assert world.names("ModelEndpoint") == []
    assert world.status["phase"] == "Succeeded"
    assert [each["name"] for each in world.status["stages"]] == STAGES
