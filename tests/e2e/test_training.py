"""Ways to train on the real cluster: sharded over two nodes, and one job after another.

What is asserted is what ran: the class around the model, the nodes of the pods, and in the
checkpoints that every weight is cut in two. The model is tiny, because a node has a core.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hack.demo.platform import Platform
from tests.e2e import shards
from tests.e2e.history import PodHistory
from tests.e2e.jobs import metric, tiny_job, wait_for_phase

PATIENCE = 400
"""Seconds for a job of four stages."""
STEPS = {"maxSteps": 8, "batchSize": 4, "microBatchSize": 2, "maxSequenceLength": 128}
SHARDED = {
    "zero3-full": ({"type": "Full"}, "ZeRO3", "DeepSpeedEngine", 2e-3),
    "fsdp-qlora": ({"type": "QLoRA", "lora": {"rank": 8}}, "FSDP", "FSDP", 1e-2),
}


@pytest.fixture(scope="module", params=SHARDED)
def sharded(running: Platform, history: PodHistory, request: Any) -> tuple[str, dict[str, Any]]:
    """The name of a strategy's job and its status at the end."""
    name: str = request.param
    method, strategy, _, rate = SHARDED[name]
    running.kubectl.apply(
        tiny_job(
            name,
            method=method,
            training={**STEPS, "learningRate": rate, "checkpoint": {"intervalSteps": 4}},
            compute={"nodes": 2, "strategy": strategy},
        )
    )
    return name, wait_for_phase(running.kubectl, name, "Succeeded", PATIENCE)


def test_two_nodes_train_one_model(
    sharded: tuple[str, dict[str, Any]], history: PodHistory
) -> None:
    name, found = sharded
    training = found["status"]["training"]
    assert training["worldSize"] == 2
    assert training["engine"].startswith(SHARDED[name][2])
    assert training["steps"] == STEPS["maxSteps"]
    assert len(set(training["hosts"])) == 2
    assert len({pod.node for pod in history.of(name, "train")}) == 2
    assert found["status"].get("restarts", 0) == 0


def test_the_model_has_learnt(sharded: tuple[str, dict[str, Any]]) -> None:
    _, found = sharded
    assert metric(found["status"]["evaluation"], "loss")["improvement"] > 0


def test_every_weight_was_cut_in_two(
    sharded: tuple[str, dict[str, Any]], running: Platform
) -> None:
    name, found = sharded
    job = running.workspace(running.kubectl.namespace) / "jobs" / found["metadata"]["uid"]
    (checkpoint,) = (job / "checkpoints").glob(f"*/step-{STEPS['maxSteps']:08d}")
    assert (checkpoint / "COMPLETE").exists()
    first, second = (_weights(path) for path in sorted(checkpoint.rglob("rank-*.safetensors")))
    assert first, f"{name} has saved no weight"
    assert first.keys() == second.keys()
    for weight, elements in first.items():
        assert elements == pytest.approx(second[weight], rel=0.1), weight


def test_a_job_learns_preferences_from_the_artifact_of_another(running: Platform) -> None:
    shards.write_shards(running.assets / "data" / "shards")
    folder = {"uri": "pvc://demo-assets/data/shards"}
    running.kubectl.apply(
        tiny_job(
            "first-sft",
            model={"tokenizer": {"chatTemplate": shards.TEMPLATE}},
            dataset={
                "train": [folder],
                "validation": {**folder, "split": "validation"},
                "invalidRows": {"policy": "Skip", "max": "0.5%"},
            },
            training={**STEPS, "maxSequenceLength": 256},
        )
    )
    first = wait_for_phase(running.kubectl, "first-sft", "Succeeded", PATIENCE)
    _assert_every_row_accounted_for(first["status"]["data"])
    uri = first["status"]["artifact"]["uri"]
    assert uri.startswith("pvc://finetune-workspace/artifacts/")

    running.kubectl.apply(
        tiny_job(
            "then-dpo",
            model={"uri": uri},
            dataset=_preferences(running),
            objective="DPO",
            training={**STEPS, "learningRate": 1e-3},
        )
    )
    second = wait_for_phase(running.kubectl, "then-dpo", "Succeeded", PATIENCE)

    _assert_mounted_alone(running, uri)
    shared = running.workspace(running.kubectl.namespace)
    artifact = shared / uri.removeprefix("pvc://finetune-workspace/")
    weights = (artifact / "model.safetensors").read_bytes()
    copies = [path.read_bytes() for path in (shared / "models").rglob("model.safetensors")]
    assert weights in copies, "the second job did not start from the first one's weights"
    evaluation = second["status"]["evaluation"]
    assert {"value", "tuned", "low"} <= set(metric(evaluation, "preferenceAccuracy"))
    loss = metric(evaluation, "loss")
    assert loss["tuned"] < loss["value"]
    assert second["status"]["artifact"]["digest"] != first["status"]["artifact"]["digest"]


def _assert_every_row_accounted_for(data: dict[str, Any]) -> None:
    broken = len(shards.BROKEN_LINES)
    assert data["trainExamples"] == shards.SHARDS * shards.ROWS_PER_SHARD - broken
    assert data["evalExamples"] == shards.HELD_OUT_ROWS
    (skipped,) = data["skipped"]
    assert (skipped["reason"], skipped["rows"]) == ("BrokenRow", broken)
    assert "Line 7 of train-00001-of-00004.jsonl" in skipped["first"]
    assert data["ignoredColumns"] == ["id"]
    assert [(each["files"], each["filesLeftOut"]) for each in data["sources"]] == [(4, 2), (1, 5)]


def _weights(path: Path) -> dict[str, int]:
    """Elements of every weight in one rank's file, from its safetensors header."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    runs = {name.rpartition("@")[0]: entry for name, entry in header.items() if "@" in name}
    return {name: entry["shape"][0] for name, entry in runs.items() if name.startswith("weight/")}


def _preferences(running: Platform) -> dict[str, object]:
    """The rows of the tiny data set, each with an answer that is rejected."""
    data = running.assets / "data"
    rows = [json.loads(line) for line in (data / "tiny.jsonl").read_text().splitlines()]
    reported = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": "Nobody knows."}
        for row in rows
    ]
    path = data / "preferences.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in reported))
    path.chmod(0o644)
    return {"train": [{"uri": "pvc://demo-assets/data/preferences.jsonl"}]}


def _assert_mounted_alone(running: Platform, uri: str) -> None:
    """Of the workspace the second job's prepare saw the artifact, and could not write it."""
    folder = uri.removeprefix("pvc://finetune-workspace/")
    job = running.kubectl.json("get", "job", "then-dpo-prepare-1")
    spec = job["spec"]["template"]["spec"]
    mounts = spec["containers"][0]["volumeMounts"]
    (mount,) = (each for each in mounts if each.get("subPath") == folder)
    assert mount["readOnly"] is True
    assert all(each.get("subPath") for each in mounts if each["name"] == mount["name"])
    claims = [
        volume.get("persistentVolumeClaim", {}).get("claimName") for volume in spec["volumes"]
    ]
    assert claims.count("finetune-workspace") == 1
