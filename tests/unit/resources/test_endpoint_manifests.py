"""The rendered children of an endpoint, compared with golden files.

`UPDATE_GOLDEN=1 pytest tests/unit/resources/test_endpoint_manifests.py` rewrites them for review.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_api.acceleratorprofile import AcceleratorProfile
from finetune_operator.decision import HASH_ANNOTATION, Manifest, Settings
from finetune_operator.endpoints.observe import parse_artifact
from finetune_operator.resources.deployment import build_deployment
from finetune_operator.resources.endpoint_service import build_endpoint_service
from finetune_operator.resources.inferenceservice import build_inference_service, predictor_app
from finetune_operator.resources.metadata import add_spec_hash
from finetune_operator.resources.servingruntime import build_serving_runtime, escape_go_template
from finetune_operator.resources.vllm import Artifact, ServedRevision

from tests.unit.endpoints.world import GPU_PROFILE, artifact, endpoint, profile

GOLDEN = Path(__file__).parents[2] / "golden" / "endpoints"


def served(pool: Manifest, **more: Any) -> ServedRevision:
    found = parse_artifact(**artifact("a"))
    assert isinstance(found, Artifact)
    fields = {
        "endpoint": endpoint(),
        "number": 1,
        "key": "spec-pod",
        "artifact": found,
        "profile": AcceleratorProfile.model_validate(
            {"name": pool["metadata"]["name"], "spec": pool["spec"]}
        ),
        "gpus": 1,
        "replicas": 1,
        "settings": Settings(trainer_image="trainer:v1", serving_image="vllm:v1"),
    }
    return ServedRevision(**{**fields, **more})


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
        ("deployment-cpu", build_deployment(CPU)),
        ("deployment-gpu", build_deployment(GPU)),
        ("service", build_endpoint_service(endpoint(), 1, "glossary-r1")),
        ("servingruntime-gpu", build_serving_runtime(GPU)),
        ("inferenceservice-gpu", build_inference_service(GPU)),
    ],
)
def test_a_manifest_equals_its_golden_file(name: str, manifest: Manifest) -> None:
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(yaml.safe_dump(manifest, sort_keys=False))
    assert yaml.safe_load(path.read_text()) == manifest


def test_kserve_runs_the_same_container_as_the_deployment() -> None:
    plain = build_deployment(GPU)["spec"]["template"]["spec"]["containers"][0]
    runtime = build_serving_runtime(GPU)["spec"]["containers"][0]
    model = build_inference_service(GPU)["spec"]["predictor"]["model"]
    assert [escape_go_template(each) for each in plain["args"]] == runtime["args"] + model["args"]
    for field in ("image", "command", "env", "startupProbe", "readinessProbe", "securityContext"):
        assert plain[field] == runtime[field]
    assert plain["resources"] == model["resources"]


def test_vllm_listens_on_both_families_where_pods_have_ipv6_addresses() -> None:
    settings = replace(GPU.settings, has_ipv6_pods=True)
    for each in (replace(CPU, settings=settings), replace(GPU, settings=settings)):
        (container,) = build_deployment(each)["spec"]["template"]["spec"]["containers"]
        arguments = container["args"]
        assert arguments[arguments.index("--host") + 1] == "::"
        assert "--host" in build_serving_runtime(each)["spec"]["containers"][0]["args"]
    (container,) = build_deployment(GPU)["spec"]["template"]["spec"]["containers"]
    assert "--host" not in container["args"]


def test_double_braces_are_escaped_for_go_templates() -> None:
    assert escape_go_template('{"a": {{"b": 1}}}') == '{"a": {{`{{`}}"b": 1}}}'
    assert escape_go_template('{"a": 1}') == '{"a": 1}'


def test_a_runtime_is_named_by_its_content_and_its_owner() -> None:
    other = endpoint()
    other["metadata"]["uid"] = "other"
    names = {
        build_serving_runtime(each)["metadata"]["name"]
        for each in (CPU, GPU, served(profile(), endpoint=other), served(profile(), number=2))
    }
    assert len(names) == 3
    assert all(name.startswith("finetune-vllm-") and len(name) == 22 for name in names)


def test_the_longest_names_fit_into_a_label() -> None:
    assert len(predictor_app("x" * 40 + "-r99999")) <= 63


def test_the_spec_hash_ignores_itself_and_changes_with_the_manifest() -> None:
    once = build_deployment(CPU)
    assert add_spec_hash(once) == once
    other = build_deployment(served(profile(), replicas=2))
    hashes = {each["metadata"]["annotations"][HASH_ANNOTATION] for each in (once, other)}
    assert len(hashes) == 2


@pytest.mark.parametrize("revision", [CPU, GPU], ids=["cpu", "gpu"])
def test_a_server_runs_no_code_of_the_model(revision: ServedRevision) -> None:
    for build in (build_deployment, build_inference_service, build_serving_runtime):
        assert "trust" not in str(build(revision))
