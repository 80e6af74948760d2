"""A real API server stores every form of a quantity as written, and its pods take it."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.acceleratorprofile import AcceleratorProfileSpec
from finetune_operator.decision import Settings
from finetune_operator.resources.job import build_stage_job
from finetune_operator.resources.metadata import AttemptMetadata
from finetune_operator.resources.pod import StagePods
from finetune_operator.resources.resource_requirements import build_training_resources

from tests.api.client import Api, ApiError
from tests.api.test_cel import job, profile

SETTINGS = Settings(trainer_image="trainer:v1", serving_image="vllm:v1")
WHOLE = [4, 8589934592, "4", "4.", "+4", "1e3", "5E+1"]


@pytest.mark.parametrize("quantity", [*WHOLE, "4.5", ".5", "15E-1", "500m", "2Pi"])
def test_a_quantity_is_stored_as_written_and_pods_take_it(
    api: Api, namespace: str, quantity: Any
) -> None:
    sizes = {"memoryPerDevice", "cpuPerDevice", "hostMemoryPerDevice", "sharedMemory"}
    changes = {
        **dict.fromkeys(sizes, quantity),
        "resourceName": "nvidia.com/gpu",
        "limitsPerDevice": {"cpu": quantity, "memory": quantity},
        "extraResources": {"rdma/hca": quantity} if quantity in WHOLE else {},
    }
    made = api.create(profile(**changes))["spec"]
    assert {name: made[name] for name in changes} == changes

    pool = AcceleratorProfileSpec.model_validate(made)
    pods = StagePods(
        resources=build_training_resources(pool, 3), shared_memory=pool.shared_memory, mounts=[]
    )
    attempt = AttemptMetadata(api.create(job(namespace)), "train", 1)
    api.create(build_stage_job(attempt, pods, SETTINGS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memoryPerDevice": -1}, "must be a quantity such as 80Gi, 500m or 4"),
        ({"memoryPerDevice": "-1"}, "must be a quantity such as 80Gi, 500m or 4"),
        ({"memoryPerDevice": "1e999"}, "must be a quantity such as 80Gi, 500m or 4"),
        ({"memoryPerDevice": "80K"}, "must be a quantity such as 80Gi, 500m or 4"),
        ({"memoryPerDevice": 1.5}, "spec.memoryPerDevice"),
        ({"memoryPerDevice": True}, "spec.memoryPerDevice"),
        ({"cpuPerDevice": 4, "limitsPerDevice": {"cpu": "3"}}, "limitsPerDevice.cpu is less than"),
        ({"cpuPerDevice": "4", "limitsPerDevice": {"cpu": 3}}, "limitsPerDevice.cpu is less than"),
        ({"extraResources": {"rdma/hca": 0}}, "must be whole numbers above 0"),
        ({"extraResources": {"rdma/hca": ".5"}}, "must be whole numbers above 0"),
        ({"extraResources": {"rdma/hca": -1}}, "must be a quantity such as 80Gi, 500m or 4"),
        ({"extraResources": {"hugepages-2Mi": 3000000}}, "a multiple of the size of their pages"),
    ],
)
def test_the_api_server_refuses(api: Api, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ApiError) as refusal:
        api.create(profile(**changes))
    assert message in refusal.value.message


@pytest.mark.parametrize("value", [-1, "-1", "1e999", "80K", 1.5, True, "", "4 ", "Gi", "1e", None])
def test_the_model_refuses(value: object) -> None:
    with pytest.raises(ValueError, match="memoryPerDevice"):
        AcceleratorProfileSpec.model_validate({"memoryPerDevice": value})
