"""What export gets to know about the artifact that it writes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from tests.unit.jobs.world import RESULTS, SETTINGS, World, job_manifest


def read_run_config(world: World) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(
        world.need("ConfigMap", "glossary-export-1")["data"]["run.json"]
    )
    return config


@pytest.mark.parametrize(
    ("own", "default", "retention"),
    [
        (None, "Always", None),
        (None, "720h", "720h"),
        ("WhileReferenced", "720h", "WhileReferenced"),
        ("Always", "WhileReferenced", None),
    ],
)
def test_the_jobs_retention_wins_over_that_of_the_installation(
    own: str | None, default: str, retention: str | None
) -> None:
    world = World(job_manifest(export={"retain": own} if own else None))
    world.settings = dataclasses.replace(SETTINGS, artifact_retention=default)
    world.run_until("export")
    assert read_run_config(world).get("artifactRetention") == retention


def test_the_status_has_the_retention_that_export_reported() -> None:
    world = World(job_manifest(serve=None))
    world.run_until("export")
    world.add_pods("glossary-export-1")
    world.succeed("export", artifact={**RESULTS["export"]["artifact"], "retention": "720h"})
    world.settle()
    assert world.status["artifact"]["retention"] == "720h"
