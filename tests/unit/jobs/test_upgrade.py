"""Another version of the operator takes over: what runs is not touched, what is tried again is
tried as before."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.decision import Manifest

from tests.unit.jobs.world import NAMESPACE, SETTINGS, World

OLD, NEW = "registry.example/trainer:1", "registry.example/trainer:2"


def run_json(world: World, name: str) -> dict[str, Any]:
    found = world.get("ConfigMap", NAMESPACE, name)
    assert found is not None
    run: dict[str, Any] = json.loads(found["data"]["run.json"])
    return run


def image_of(world: World, name: str) -> str:
    job = world.get("Job", NAMESPACE, name)
    assert job is not None
    return str(job["spec"]["template"]["spec"]["containers"][0]["image"])


def written_by_another_version(world: World, name: str) -> None:
    """Its run.json has a field that this version does not know and lacks a default it has."""
    found = world.get("ConfigMap", NAMESPACE, name)
    assert found is not None
    run = json.loads(found["data"]["run.json"])
    run["tomorrow"] = {"seed": 7}
    run["spec"]["training"]["tomorrow"] = True
    del run["paths"]
    changed: Manifest = {**found, "data": {"run.json": json.dumps(run)}}
    world.load(changed)


def retried(world: World) -> None:
    [pod, *_] = world.pods("glossary-train-1")
    world.end_pod(pod, code=75)
    world.end_job("glossary-train-1", "Failed")
    for _ in range(40):
        world.settle()
        if "glossary-train-2" in world.names("Job"):
            return
        world.tick(5)
    raise AssertionError("never tried again")


@pytest.mark.parametrize("settings", [replace(SETTINGS, trainer_image=NEW, workspace_size="1Ti")])
def test_what_runs_is_not_touched(settings: Any) -> None:
    world = World()
    world.run_until("train")
    world.settle()
    world.add_pods("glossary-train-1")
    world.settle()
    world.settings = settings

    world.reconcile()

    decision = world.decision
    assert (decision.create, decision.apply, decision.delete) == ((), (), ())


def test_the_next_attempt_has_the_image_and_the_run_of_the_one_before() -> None:
    world = World()
    world.run_until("train")
    world.settle()
    world.add_pods("glossary-train-1")
    world.settle()
    written_by_another_version(world, "glossary-train-1")
    first = run_json(world, "glossary-train-1")
    world.settings = replace(SETTINGS, trainer_image=NEW)

    retried(world)

    second = run_json(world, "glossary-train-2")
    assert image_of(world, "glossary-train-2") == OLD
    assert second.pop("attempt") == 2
    assert second.pop("masterHost") == first.pop("masterHost").replace("train-1", "train-2")
    first.pop("attempt")
    assert second == first


def test_a_stage_that_has_not_begun_has_the_image_that_is_installed() -> None:
    world = World()
    world.settle()
    assert image_of(world, "glossary-prepare-1") == OLD
    world.settings = replace(SETTINGS, trainer_image=NEW)
    world.run_until("train")
    world.settle()
    assert image_of(world, "glossary-train-1") == NEW


def test_an_attempt_whose_configmap_alone_was_made_gets_the_image_named_in_it() -> None:
    world = World()
    world.reconcile()
    world.remove("Job", "glossary-prepare-1")  # the process ended before it
    world.settings = replace(SETTINGS, trainer_image=NEW)
    world.settle()
    assert image_of(world, "glossary-prepare-1") == OLD


def test_what_another_version_wrote_and_cannot_be_read_costs_nothing_else() -> None:
    world = World()
    world.run_until("train")
    world.settle()
    world.add_pods("glossary-train-1")
    world.settle()
    before = world.status
    for pod in world.pods("glossary-prepare-1"):
        world.remove_pod(pod)
    world.remove("Job", "glossary-prepare-1")
    odd = {**before, "suspendedSeconds": "a day"}
    world.load({**world.job, "status": odd})

    world.settle()

    after = world.status
    assert after["suspendedSeconds"] == 0
    for field in ("startedAt", "plan", "stages", "phase"):
        assert after[field] == before[field]
    assert "glossary-prepare-1" not in world.names("Job"), "what is done is not done again"
