"""No pod that the operator makes has a token for the API server, whatever job and pool ask for.

Identities of clouds do not need it: their webhooks mount tokens of another audience.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetune_operator import resources
from finetune_operator.decision import Manifest
from finetune_operator.resources.deployment import build_deployment
from finetune_operator.resources.inferenceservice import build_inference_service
from finetune_operator.resources.janitor import build_janitor_job
from finetune_operator.resources.servingruntime import build_serving_runtime

from tests.unit.jobs.world import NAMESPACE, SETTINGS, START, World, job_manifest
from tests.unit.resources.test_endpoint_manifests import CPU, GPU
from tests.unit.resources.test_stage_manifests import CREDENTIALS, GPU_POOL, STAGES

IDENTITY = {
    "serviceAccountName": "s3-reader",
    "tracking": {"wandb": {"project": "p"}, "credentialsSecretRef": {"name": "w"}},
}
CONTAINERS = {"containers", "predictor"}
SOURCES = Path(next(iter(resources.__path__)))
BUILDERS_OF_CONTAINERS = {
    "deployment.py",
    "inferenceservice.py",
    "janitor.py",
    "pod.py",
    "servingruntime.py",
}


def stage_jobs(spec: dict[str, Any], pool: dict[str, Any] | None) -> Iterator[Manifest]:
    """The Jobs of all stages of a job that may use the ServiceAccount s3-reader."""
    world = World(job_manifest(**spec))
    world.add_claim("held-out")
    world.settings = replace(
        SETTINGS, allowed_service_accounts=("s3-reader",), trainer_service_account="trainer"
    )
    if pool is not None:
        world.add_profile("cpu", pool)
    world.run_until("export")
    for stage in STAGES:
        yield world.need("Job", f"glossary-{stage}-1")


def pod_specs(manifest: Any) -> Iterator[Manifest]:
    """Every part of a manifest from which pods are made."""
    if isinstance(manifest, dict):
        if "containers" in manifest or "model" in manifest:
            yield manifest
        for value in manifest.values():
            yield from pod_specs(value)


def every_owner_of_pods() -> dict[str, list[Manifest]]:
    janitor = replace(SETTINGS, trainer_service_account="trainer")
    return {
        "stages": list(stage_jobs({}, None)),
        "stages with credentials": list(stage_jobs(CREDENTIALS, GPU_POOL)),
        "stages with an identity": list(stage_jobs(IDENTITY, GPU_POOL)),
        "stages on the host network": list(stage_jobs(IDENTITY, {**GPU_POOL, "hostNetwork": True})),
        "janitor": [build_janitor_job(NAMESPACE, "uid", [], frozenset(), START, janitor)],
        "deployments": [build_deployment(CPU), build_deployment(GPU)],
        "KServe": [build_inference_service(each) for each in (CPU, GPU)],
    }


OWNERS = every_owner_of_pods()


@pytest.mark.parametrize("owners", OWNERS.values(), ids=OWNERS)
def test_no_pod_has_a_token_for_the_api_server(owners: list[Manifest]) -> None:
    for owner in owners:
        specs = list(pod_specs(owner))
        assert len(specs) == 1, owner["kind"]
        assert specs[0]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("owners", OWNERS.values(), ids=OWNERS)
def test_no_pod_mounts_a_token_or_a_secret(owners: list[Manifest]) -> None:
    for owner in owners:
        for spec in pod_specs(owner):
            kinds = {kind for volume in spec.get("volumes", []) for kind in volume} - {"name"}
            assert kinds <= {"configMap", "downwardAPI", "emptyDir", "persistentVolumeClaim"}


def test_a_serving_runtime_adds_no_volume_to_the_pods_of_kserve() -> None:
    """It has no field for the token; the pods take that of the InferenceService."""
    for runtime in map(build_serving_runtime, (CPU, GPU)):
        kinds = {kind for volume in runtime["spec"]["volumes"] for kind in volume} - {"name"}
        assert kinds == {"emptyDir"}


def test_these_are_all_builders_of_containers() -> None:
    """A new one belongs into this test."""
    assert {p.name for p in SOURCES.glob("*.py") if keys(p) & CONTAINERS} == BUILDERS_OF_CONTAINERS


def keys(path: Path) -> set[Any]:
    """The constant keys of all dicts in a module."""
    dicts = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Dict)]
    return {key.value for each in dicts for key in each.keys if isinstance(key, ast.Constant)}
