"""The ServiceAccount that a job names: only one that the installation allows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_api.protocol import CLOUD_IDENTITY_ENV

from tests.unit.jobs.world import SETTINGS, World, job_manifest


def world_with(
    name: str | None, *allowed: str, spec: dict[str, Any] | None = None, **settings: Any
) -> World:
    """A job that names this ServiceAccount, where these are allowed."""
    world = World(job_manifest(serviceAccountName=name, **(spec or {})))
    world.settings = replace(SETTINGS, allowed_service_accounts=allowed, **settings)
    world.settle()
    return world


@pytest.mark.parametrize(
    ("allowed", "which"),
    [((), "this installation allows none"), (("a", "b"), "this installation allows a, b")],
)
def test_another_service_account_stalls_the_job_before_it_starts(
    allowed: tuple[str, ...], which: str
) -> None:
    world = world_with("s3-reader", *allowed)
    stalled = world.condition("Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "ServiceAccountNotAllowed")
    message = world.status["message"]
    assert message.startswith(f"jobs may not use ServiceAccount s3-reader; {which}")
    assert "leave spec.serviceAccountName out" in message
    assert "trainer.serviceAccounts" in message
    assert "startedAt" not in world.status, "the spec can still be corrected"
    assert world.names("Job") == []


def test_the_job_continues_when_its_service_account_is_allowed() -> None:
    world = world_with("s3-reader")
    world.settings = replace(SETTINGS, allowed_service_accounts=("s3-reader",))
    world.settle()
    assert world.condition("Stalled")["status"] == "False"
    assert world.names("Job") == ["glossary-prepare-1"]


TRACKED = {"tracking": {"wandb": {"project": "p"}, "credentialsSecretRef": {"name": "w"}}}


@pytest.mark.parametrize("is_tracked", [False, True])
def test_a_service_account_that_is_withdrawn_stalls_the_next_stage_that_needs_it(
    is_tracked: bool,
) -> None:
    world = world_with("s3-reader", "s3-reader", spec=TRACKED if is_tracked else {})
    world.settings = SETTINGS
    world.settle()
    assert world.condition("Stalled")["status"] == "False"
    world.run_stage("prepare")
    if is_tracked:
        assert world.condition("Stalled")["reason"] == "ServiceAccountNotAllowed"
        assert world.names("Job") == ["glossary-prepare-1"]
    else:
        assert "glossary-train-1" in world.names("Job")


def find_identities(world: World) -> dict[str, tuple[str, bool]]:
    """By stage, the ServiceAccount of its pods and whether they ask a cloud for its identity."""
    found = {}
    for stage in ("prepare", "train", "evaluate", "export"):
        pod = world.need("Job", f"glossary-{stage}-1")["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        names = {each["name"] for each in pod["containers"][0]["env"]}
        found[stage] = (pod["serviceAccountName"], CLOUD_IDENTITY_ENV in names)
    return found


@pytest.mark.parametrize("is_tracked", [False, True])
def test_only_stages_that_reach_other_systems_run_as_the_service_account_of_the_job(
    is_tracked: bool,
) -> None:
    spec = TRACKED if is_tracked else {}
    world = world_with("s3-reader", "s3-reader", trainer_service_account="trainer", spec=spec)
    world.run_until("export")
    own, installed = ("s3-reader", True), ("trainer", False)
    assert find_identities(world) == {
        "prepare": own,
        "train": own if is_tracked else installed,
        "evaluate": installed,
        "export": installed,
    }


def test_a_job_that_names_none_runs_as_the_one_of_the_installation() -> None:
    world = world_with(None, "s3-reader", trainer_service_account="trainer")
    pod = world.need("Job", "glossary-prepare-1")["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "trainer"
    assert CLOUD_IDENTITY_ENV not in {each["name"] for each in pod["containers"][0]["env"]}
