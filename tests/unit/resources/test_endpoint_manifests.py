"""The rendered children, as golden files.

UPDATE_GOLDEN=1 pytest tests/unit/resources/test_endpoint_manifests.py   writes them anew, for review.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_api.acceleratorprofile import AcceleratorProfile
from finetune_operator.decision import HASH_ANNOTATION, Manifest, Settings
from finetune_operator.endpoints.observe import read_artifact
from finetune_operator.resources.deployment import deployment
from finetune_operator.resources.endpoint_service import service_pointer
from finetune_operator.resources.inferenceservice import inference_service, predictor_app
from finetune_operator.resources.metadata import hashed
from finetune_operator.resources.servingruntime import go_template_literal, serving_runtime
from finetune_operator.resources.vllm import Artifact, ServedRevision

from tests.unit.endpoints.world import GPU_PROFILE, artifact, endpoint, profile

GOLDEN = Path(__file__).parents[2] / "golden" / "endpoints"


def served(pool: Manifest, **more: Any) -> ServedRevision:
    found = read_artifact(**artifact("a"))
    assert isinstance(found, Artifact)
    given = {
        "endpoint": endpoint(),
        "number": 1,
        "key": "wish-shape",
        "artifact": found,
        "profile": AcceleratorProfile.model_validate(
            {"name": pool["metadata"]["name"], "spec": pool["spec"]}
        ),
        "gpus": 1,
        "replicas": 1,
        "settings": Settings(trainer_image="trainer:v1", serving_image="vllm:v1"),
    }
    return ServedRevision(**{**given, **more})


CPU = served(profile())
GPU = served(
    profile("h100", **GPU_PROFILE),
    gpus=4,
    replicas=2,
    settings=Settings("trainer:v1", "vllm:v1", image_pull_secrets=("registry",)),
)


@pytest.mark.parametrize(
    ("name", "manifest"),
    [
        ("deployment-cpu", deployment(CPU)),
        ("deployment-gpu", deployment(GPU)),
        ("service", service_pointer(endpoint(), 1, "glossary-r1")),
        ("servingruntime-gpu", serving_runtime(GPU)),
        ("inferenceservice-gpu", inference_service(GPU)),
    ],
)
def test_manifest_is_the_reviewed_one(name: str, manifest: Manifest) -> None:
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(yaml.safe_dump(manifest, sort_keys=False))
    assert yaml.safe_load(path.read_text()) == manifest


def test_kserve_runs_the_container_of_the_deployment() -> None:
    plain = deployment(GPU)["spec"]["template"]["spec"]["containers"][0]
    runtime = serving_runtime(GPU)["spec"]["containers"][0]
    model = inference_service(GPU)["spec"]["predictor"]["model"]
    assert [go_template_literal(each) for each in plain["args"]] == runtime["args"] + model["args"]
    for field in ("image", "command", "env", "startupProbe", "readinessProbe", "securityContext"):
        assert plain[field] == runtime[field]
    assert plain["resources"] == model["resources"]


def test_go_template_leaves_double_braces_as_they_are() -> None:
    assert go_template_literal('{"a": {{"b": 1}}}') == '{"a": {{`{{`}}"b": 1}}}'
    assert go_template_literal('{"a": 1}') == '{"a": 1}'


def test_runtime_is_named_by_what_it_runs_and_for_whom() -> None:
    other = endpoint()
    other["metadata"]["uid"] = "other"
    names = {
        serving_runtime(each)["metadata"]["name"]
        for each in (CPU, GPU, served(profile(), endpoint=other), served(profile(), number=2))
    }
    assert len(names) == 3
    assert all(name.startswith("finetune-vllm-") and len(name) == 22 for name in names)


def test_longest_names_fit_a_label() -> None:
    assert len(predictor_app("x" * 40 + "-r99999")) <= 63


def test_hash_does_not_depend_on_itself_and_tells_any_change() -> None:
    once = deployment(CPU)
    assert hashed(once) == once
    other = deployment(served(profile(), replicas=2))
    hashes = {each["metadata"]["annotations"][HASH_ANNOTATION] for each in (once, other)}
    assert len(hashes) == 2
