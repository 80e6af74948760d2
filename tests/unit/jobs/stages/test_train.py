"""How long a training pod may take to end, and which keys of trackers it sees."""

from typing import Any

import pytest
from finetune_api.facts import WorkspaceFacts
from finetune_api.jobstatus import CheckpointStatus
from finetune_operator.jobs.stages.train import grace_seconds

from tests.unit.jobs.world import World, job_manifest, recover, result, training

GIB = 1024**3
SLOW = WorkspaceFacts(free_bytes=10**12, write_bytes_per_second=10 * 2**20)


@pytest.mark.parametrize(
    ("measured", "size", "workspace", "seconds"),
    [
        (None, None, None, 120),
        (None, GIB, None, 120),
        (None, GIB, SLOW, 368),
        (100.0, GIB, SLOW, 360),
        (0.5, None, None, 120),
        (90.5, None, None, 332),
        (5000.0, None, None, 3600),
        (None, 1000 * GIB, SLOW, 3600),
    ],
    ids=[
        "nothing is known",
        "the size alone is not enough",
        "computed from size and speed",
        "measured wins over computed",
        "never less than two minutes",
        "whole seconds, rounded up",
        "never more than an hour",
        "nor when computed",
    ],
)
def test_grace_is(
    measured: float | None, size: int | None, workspace: WorkspaceFacts | None, seconds: int
) -> None:
    checkpoint = None if measured is None else CheckpointStatus(step=10, seconds=measured)
    assert grace_seconds(checkpoint, size, workspace) == seconds


def grace_of(world: World, job: str) -> int:
    spec = world.need("Job", job)["spec"]["template"]["spec"]
    return int(spec["terminationGracePeriodSeconds"])


def test_the_first_attempt_has_what_prepare_measured() -> None:
    world = World()
    world.settle()
    (pod,) = world.add_pods("glossary-prepare-1")
    facts = {"freeBytes": 10**12, "writeBytesPerSecond": 200000.0}
    world.end_pod(pod, 0, result("prepare", workspace=facts))
    world.settle()
    assert world.status["workspace"] == facts
    # 58.6 MB: twelve bytes for each of the 4.88 million weights of LoRA.
    assert grace_of(world, "glossary-train-1") == 940


def test_the_next_attempt_has_what_training_measured() -> None:
    world, pods = training()
    assert grace_of(world, "glossary-train-1") == 120
    world.report_progress(
        pods[0], step=10, lastCheckpointStep=10, checkpointSeconds=80, checkpointBytes=9
    )
    world.settle()
    assert world.status["checkpoint"] == {"step": 10, "seconds": 80.0, "bytes": 9}
    world.end_pod(pods[0], 1)
    world.settle()
    recover(world, 10)
    assert grace_of(world, "glossary-train-2") == 300


def test_other_stages_have_nothing_to_save() -> None:
    world = World()
    world.settle()
    assert grace_of(world, "glossary-prepare-1") == 30


def environment(world: World, stage: str) -> dict[str, Any]:
    env: dict[str, Any] = {item["name"]: item for item in world.container(stage)["env"]}
    return env


def test_only_train_sees_the_trackers_keys_and_no_other_key_of_the_secret() -> None:
    tracking = {
        "credentialsSecretRef": {"name": "trackers"},
        "wandb": {"project": "p"},
        "mlflow": {"experiment": "e", "trackingUri": "https://mlflow.example"},
    }
    world = World(job_manifest(tracking=tracking))
    world.run_until("evaluate")
    env = environment(world, "train")
    key = env["WANDB_API_KEY"]["valueFrom"]["secretKeyRef"]
    assert key == {"name": "trackers", "key": "WANDB_API_KEY", "optional": False}
    assert env["MLFLOW_TRACKING_TOKEN"]["valueFrom"]["secretKeyRef"]["optional"] is True
    assert "envFrom" not in world.container("train")
    for stage in ("prepare", "evaluate"):
        assert not [name for name in environment(world, stage) if "WANDB" in name or "ML" in name]


@pytest.mark.parametrize(
    "trackers", [{"wandb": {"project": "p", "offline": True}}, {"mlflow": {"experiment": "e"}}]
)
def test_a_tracker_that_sends_nothing_sees_no_key(trackers: dict[str, Any]) -> None:
    world = World(job_manifest(tracking={"credentialsSecretRef": {"name": "trackers"}, **trackers}))
    world.run_until("train")
    assert not [item for item in world.container("train")["env"] if "valueFrom" in item]


def test_a_job_waits_for_a_missing_key_of_its_tracker() -> None:
    tracking = {"credentialsSecretRef": {"name": "trackers"}, "wandb": {"project": "p"}}
    world = World(job_manifest(tracking=tracking))
    world.run_until("train")
    for pod in world.add_pods("glossary-train-1"):
        said = "couldn't find key WANDB_API_KEY in Secret team-a/trackers"
        world.set_waiting(pod, "CreateContainerConfigError", said)
    world.settle()
    assert world.condition("Stalled")["status"] == "True"
    assert "WANDB_API_KEY" in world.condition("Stalled")["message"]
