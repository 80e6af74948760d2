"""The hand-over to a ModelEndpoint."""

from typing import Any

import pytest
from finetune_api.modelendpoint import ModelEndpointSpec

from tests.unit.jobs.world import DIGEST, NAMESPACE, World, job_manifest

OTHER = "sha256:" + "cd" * 32


def endpoint(world: World) -> dict[str, Any]:
    found = world.get("ModelEndpoint", NAMESPACE, "glossary")
    assert found is not None
    return dict(found["spec"])


def add_endpoint(world: World, **spec: Any) -> None:
    artifact = {"uri": "pvc://finetune-workspace/artifacts/old", "digest": OTHER}
    world.load(
        {
            "kind": "ModelEndpoint",
            "metadata": {"name": "glossary", "namespace": NAMESPACE, "uid": "ep"},
            "spec": {"artifact": artifact, **spec},
        }
    )


def test_new_endpoint_gets_artifact_probe_profile_and_devices_and_no_owner() -> None:
    world = World()
    world.run_until("serve")
    spec = endpoint(world)
    ModelEndpointSpec.model_validate(spec)
    assert spec["profile"] == "cpu"
    assert spec["gpus"] == 1
    assert spec["probe"]["messages"][0]["content"] == "What is a byte?"
    assert "replicas" not in spec
    found = world.get("ModelEndpoint", NAMESPACE, "glossary")
    assert found is not None
    assert "ownerReferences" not in found["metadata"]
    assert world.status["phase"] == "Deploying"


def test_endpoint_made_by_hand_keeps_what_is_not_ours() -> None:
    world = World()
    add_endpoint(world, replicas=3, profile="l4", gpus=2)
    world.run_until("serve")
    spec = endpoint(world)
    assert (spec["replicas"], spec["profile"], spec["gpus"]) == (3, "l4", 2)
    assert spec["artifact"]["digest"] == DIGEST
    assert spec["probe"]["answer"] == "Eight bits."
    found = world.get("ModelEndpoint", NAMESPACE, "glossary")
    assert found is not None
    assert "labels" not in found["metadata"]


def test_job_waits_until_its_own_digest_takes_the_traffic() -> None:
    world = World()
    add_endpoint(world)
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
    assert "probe" not in endpoint(world)
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


def test_job_that_was_overtaken_does_not_fight() -> None:
    world = World()
    world.run_until("serve")
    add_endpoint(world)
    world.settle()
    assert world.status["failure"]["reason"] == "Superseded"
    assert endpoint(world)["artifact"]["digest"] == OTHER


def test_job_whose_revision_had_taken_the_traffic_before_it_was_overtaken_succeeds() -> None:
    world = World()
    world.run_until("serve")
    world.serve()
    status = world.need("ModelEndpoint", "glossary")["status"]
    add_endpoint(world)
    world.replace_status(world.need("ModelEndpoint", "glossary"), status)
    world.settle()
    assert world.status["phase"] == "Succeeded"


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
def test_an_endpoint_taken_back_before_it_has_the_model_gets_nothing(stage: str) -> None:
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
