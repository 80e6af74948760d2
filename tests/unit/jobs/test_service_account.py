"""The ServiceAccount that a job names: only one that the installation allows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_api.protocol import CLOUD_IDENTITY_ENV

from tests.unit.jobs.world import SETTINGS, World, job_manifest


def world_with(name: str | None, *allowed: str, **settings: Any) -> World:
    """A job that names this ServiceAccount, where these are allowed."""
    world = World(job_manifest(serviceAccountName=name))
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


def test_a_service_account_that_is_withdrawn_stalls_the_next_stage_only() -> None:
    world = world_with("s3-reader", "s3-reader")
    world.settings = SETTINGS
    world.settle()
    assert world.condition("Stalled")["status"] == "False"
    world.run_stage("prepare")
    assert world.condition("Stalled")["reason"] == "ServiceAccountNotAllowed"
    assert world.names("Job") == ["glossary-prepare-1"]


def test_every_stage_runs_as_the_service_account_without_a_token_for_the_api_server() -> None:
    world = world_with("s3-reader", "s3-reader", trainer_service_account="trainer")
    world.run_until("export")
    for stage in ("prepare", "train", "evaluate", "export"):
        pod = world.need("Job", f"glossary-{stage}-1")["spec"]["template"]["spec"]
        assert pod["serviceAccountName"] == "s3-reader"
        assert pod["automountServiceAccountToken"] is False
        assert {"name": CLOUD_IDENTITY_ENV, "value": "true"} in pod["containers"][0]["env"]


def test_a_job_that_names_none_runs_as_the_one_of_the_installation() -> None:
    world = world_with(None, "s3-reader", trainer_service_account="trainer")
    pod = world.need("Job", "glossary-prepare-1")["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "trainer"
    assert CLOUD_IDENTITY_ENV not in {each["name"] for each in pod["containers"][0]["env"]}
