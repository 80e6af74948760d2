"""How many devices serve a model."""

from __future__ import annotations

import pytest
from finetune_api.acceleratorprofile import AcceleratorProfileSpec
from finetune_api.facts import ModelFacts
from finetune_api.failure import Failure
from finetune_operator.planner.serving import plan_serving_devices

from tests.unit.planner.facts import CPU, H100, LLAMA_8B, LLAMA_70B, SMOL


@pytest.mark.parametrize(
    ("model", "profile", "devices"), [(SMOL, CPU, 1), (LLAMA_8B, H100, 1), (LLAMA_70B, H100, 2)]
)
def test_serving_takes_the_fewest_devices_that_fit_the_model(
    model: ModelFacts, profile: AcceleratorProfileSpec, devices: int
) -> None:
    assert plan_serving_devices(model, "pool", profile) == devices


def test_serving_on_too_little_memory_is_refused() -> None:
    small = H100.model_copy(update={"memory_per_device": "10Gi"})
    found = plan_serving_devices(LLAMA_70B, "pool", small)
    assert isinstance(found, Failure)
    assert found.reason == "DoesNotFit"
    assert "profile pool has 10.0 GiB" in found.message
