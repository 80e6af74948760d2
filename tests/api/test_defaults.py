"""The API server and pydantic set the same defaults, but for items of lists."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api import API_VERSION
from finetune_api.acceleratorprofile import AcceleratorProfileSpec
from finetune_api.base import WireModel
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.modelendpoint import ModelEndpointSpec

from tests.api.client import Api

DIGEST = "sha256:" + 64 * "0"
MODEL = {"uri": "hf://org/model"}
DATASET = {"train": [{"uri": "s3://bucket/rows.jsonl"}]}
MINIMAL: dict[str, tuple[type[WireModel], list[dict[str, Any]]]] = {
    "FineTuneJob": (
        FineTuneJobSpec,
        [
            {"model": MODEL, "dataset": DATASET},
            {
                "model": MODEL,
                "dataset": {**DATASET, "columns": {}},
                "method": {"lora": {}},
                "training": {"checkpoint": {}},
                "evaluation": {
                    "baselines": [{"name": "few", "examples": 2}],
                    "gate": [{"metric": "loss", "minRelativeImprovement": "2%"}],
                },
                "serve": {"endpoint": "bot"},
            },
        ],
    ),
    "ModelEndpoint": (
        ModelEndpointSpec,
        [{}, {"artifact": {"uri": "pvc://finetune-workspace/artifacts/a", "digest": DIGEST}}],
    ),
    "AcceleratorProfile": (
        AcceleratorProfileSpec,
        [{"memoryPerDevice": "80Gi"}, {"memoryPerDevice": "1Gi", "tolerations": [{"key": "gpu"}]}],
    ),
}
CASES = [(kind, model, spec) for kind, (model, specs) in MINIMAL.items() for spec in specs]


@pytest.mark.parametrize(("kind", "model", "spec"), CASES)
def test_the_api_server_sets_the_defaults_of_the_models(
    api: Api, namespace: str, kind: str, model: type[WireModel], spec: dict[str, Any]
) -> None:
    metadata = {"generateName": "minimal-", "namespace": namespace}
    manifest = {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}

    stored = api.create(manifest, namespace)["spec"]

    wished = model.model_validate(spec)
    assert stored == with_lists_as_written(wished.to_wire(), spec)
    assert model.model_validate(stored) == wished


def with_lists_as_written(wire: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """The API server sets no defaults in items of lists, as GitOps tools compare whole lists."""
    for key, value in spec.items():
        if isinstance(value, dict):
            wire[key] = with_lists_as_written(wire[key], value)
        elif isinstance(value, list):
            wire[key] = value
    return wire
