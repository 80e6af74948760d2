"""What the operator writes names Secrets, and never has what they hold or what an address hides."""

from __future__ import annotations

import json
from typing import Any

from tests.unit.jobs.world import World, job_manifest

SIGNATURE = "plantedsignature"
SPEC: dict[str, Any] = {
    "model": {"uri": "hf://org/model", "credentialsSecretRef": {"name": "hf"}},
    "dataset": {
        "train": [
            {
                "uri": f"https://example.org/rows.jsonl?sig={SIGNATURE}",
                "credentialsSecretRef": {"name": "web"},
            }
        ]
    },
    "tracking": {"wandb": {"project": "p"}, "credentialsSecretRef": {"name": "trackers"}},
}
HOLDERS = {"FineTuneJob", "ConfigMap"}
"""The spec, and run.json, from which prepare reads the address."""


def finished_world() -> World:
    world = World(job_manifest(**SPEC))
    for stage in ("prepare", "train", "evaluate", "export"):
        world.run_stage(stage)
    return world


def test_the_query_of_an_address_is_in_the_spec_and_in_run_json_alone() -> None:
    world = finished_world()
    found = {each["kind"] for each in world.server.all_objects() if SIGNATURE in json.dumps(each)}
    assert found == HOLDERS
    assert SIGNATURE not in json.dumps(world.status)
    assert SIGNATURE not in repr(world.events)


def test_pods_get_secrets_by_reference() -> None:
    world = finished_world()
    held = []
    for stage in ("prepare", "train", "evaluate", "export"):
        container = world.container(stage)
        held += [each["secretRef"]["name"] for each in container.get("envFrom", ())]
        sources = [each["valueFrom"] for each in container["env"] if "valueFrom" in each]
        held += [each["secretKeyRef"]["name"] for each in sources if "secretKeyRef" in each]
    assert held == ["hf", "web", "trackers"], "each once, in the stage that needs it"
