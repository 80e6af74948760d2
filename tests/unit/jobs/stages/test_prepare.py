"""What the pods of a job see of claims and other jobs' artifacts."""

from typing import Any

import pytest

from tests.unit.jobs.world import DATA, World, job_manifest

ARTIFACT = "pvc://finetune-workspace/artifacts/chat-0a1b2c3d"


def volumes(world: World, stage: str) -> list[str]:
    pod = world.need("Job", f"glossary-{stage}-1")["spec"]["template"]["spec"]
    return [volume["name"] for volume in pod["volumes"]]


def mounts(world: World, stage: str) -> dict[str, dict[str, Any]]:
    return {mount["mountPath"]: mount for mount in world.container(stage)["volumeMounts"]}


@pytest.mark.parametrize("uri", [ARTIFACT, f"{ARTIFACT}/", f"{ARTIFACT}/sub"])
def test_an_artifact_of_an_earlier_job_is_mounted_alone_and_read_only(uri: str) -> None:
    world = World(job_manifest(model={"uri": uri}))
    world.settle()
    mount = mounts(world, "prepare")["/pvc/finetune-workspace/artifacts/chat-0a1b2c3d"]
    assert mount["subPath"] == "artifacts/chat-0a1b2c3d"
    assert mount["readOnly"] is True
    assert "/pvc/finetune-workspace" not in mounts(world, "prepare")
    assert volumes(world, "prepare").count("claim-0") == 1  # that of the data


@pytest.mark.parametrize("uri", ["hf://[", "https://[:::/x", "s3://\u2100", f"{ARTIFACT}?["])
def test_an_address_that_no_parser_likes_is_left_to_prepare(uri: str) -> None:
    world = World(job_manifest(model={"uri": uri}))
    world.settle()
    assert world.status["phase"] == "Preparing"


def test_the_adapter_has_a_secret_and_a_claim_of_its_own() -> None:
    adapter = {"uri": "pvc://adapters/first", "credentialsSecretRef": {"name": "first-key"}}
    world = World(job_manifest(model={"uri": "hf://acme/tiny", "adapter": adapter}))
    world.add_claim("adapters")
    world.settle()
    env_from = world.container("prepare")["envFrom"]
    assert {"prefix": "FINETUNE_SECRET_ADAPTER_", "secretRef": {"name": "first-key"}} in env_from
    assert mounts(world, "prepare")["/pvc/adapters"]["readOnly"] is True


def test_later_stages_see_the_copy_and_not_the_artifact() -> None:
    world = World(job_manifest(model={"uri": ARTIFACT}))
    world.run_until("train")
    assert "/workspace/model" in mounts(world, "train")
    assert not [path for path in mounts(world, "train") if path.startswith("/pvc")]


@pytest.mark.parametrize(
    "path",
    [
        "jobs/1b4e28ba-2fa1-41d2-883f-0016d3cca427/output",
        "models/0123456789abcdef",
        "artifacts",
        "artifacts/",
        "artifacts/../jobs/other",
        "artifacts/x/../../jobs/other",
        "artifacts//x",
        "artifacts/x?/../../jobs/other",
        "artifacts?/x",
        "",
    ],
)
def test_nothing_else_of_the_workspace_is_for_another_job(path: str) -> None:
    world = World(job_manifest(model={"uri": f"pvc://finetune-workspace/{path}"}))
    world.settle()
    assert world.status["phase"] == "Failed"
    assert world.status["failure"]["reason"] == "NotAnArtifact"
    assert "status.artifact.uri" in world.status["failure"]["remedy"]
    assert not world.names("Job")


def test_the_artifact_of_a_reward_job_judges_answers() -> None:
    grpo = {"rewardModel": {"uri": ARTIFACT}}
    world = World(job_manifest(objective="GRPO", grpo=grpo, serve=None))
    world.run_until("train")
    prepare, train = mounts(world, "prepare"), mounts(world, "train")
    assert "/pvc/finetune-workspace/artifacts/chat-0a1b2c3d" in prepare
    assert "readOnly" not in prepare["/workspace/reward"]
    assert train["/workspace/reward"]["readOnly"] is True


def test_the_status_has_the_sources_of_the_data_with_their_revisions() -> None:
    world = World()
    world.settle()
    world.add_pods("glossary-prepare-1")
    world.settle()
    sources = [
        {"uri": "hf://datasets/a/b", "revision": 40 * "c", "digest": "sha256:" + 64 * "d"}
        | {"files": 20, "filesLeftOut": 1, "rows": 4000, "bytes": 123456},
        {"files": 1, "filesLeftOut": 0, "rows": 40, "bytes": 1234},
    ]
    world.succeed("prepare", data={**DATA, "sources": sources})
    world.settle()
    assert world.status["data"]["sources"] == sources
