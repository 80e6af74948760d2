"""What the planner refuses, and the remedies that it names."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.planner.facts import CPU, DATA, H100, LLAMA_8B, LLAMA_70B, SMOL
from tests.unit.planner.planning import FULL, plan, refusal


def test_full_70b_on_one_node_is_refused_with_figures_and_remedies() -> None:
    failure = refusal(LLAMA_70B, method=FULL)
    assert failure.reason == "DoesNotFit"
    assert failure.stage == "train"
    assert "70.55 B parameters" in failure.message
    assert "on each of 8 devices; profile pool has 80.0 GiB" in failure.message
    assert failure.remedy is not None
    assert "set method.type to LoRA" in failure.remedy
    assert "set compute.nodes to" in failure.remedy


def test_a_batch_smaller_than_the_gang_is_refused() -> None:
    failure = refusal(SMOL, compute={"nodes": 2, "gpusPerNode": 8}, training={"batchSize": 8})
    assert failure.reason == "BatchTooSmall"
    assert "2 x 8 devices" in failure.message
    assert failure.remedy is not None
    assert "multiple of 16" in failure.remedy


def test_more_devices_than_a_node_has_are_refused() -> None:
    failure = refusal(SMOL, compute={"gpusPerNode": 16}, training={"batchSize": 64})
    assert failure.reason == "NotEnoughDevices"
    assert failure.message.endswith("nodes of profile pool have 8")


def test_data_without_rows_is_refused() -> None:
    data = DATA.model_copy(update={"train_sequences": 0})
    assert refusal(SMOL, H100, data).reason == "EmptyDataset"


def test_remedies_name_single_fields_that_make_the_job_fit() -> None:
    training = {"gradientCheckpointing": False, "maxSequenceLength": 8192}
    packed = DATA.model_copy(update={"packed": True})
    failure = refusal(LLAMA_8B, H100, packed, training=training, compute={"gpusPerNode": 1})
    assert failure.remedy is not None
    assert "set training.gradientCheckpointing to true" in failure.remedy
    assert "set training.maxSequenceLength to" in failure.remedy


def test_remedies_are_never_forbidden_combinations() -> None:
    pool = H100.model_copy(update={"host_memory_per_device": "2Ti"})
    adalora = refusal(LLAMA_70B, pool, method={"type": "AdaLoRA"}, compute={"gpusPerNode": 1})
    assert adalora.remedy is not None
    assert "offload" not in adalora.remedy
    assert "set method.type to QLoRA" in adalora.remedy
    experts = {"type": "LoRA", "lora": {"dropout": 0}, "moe": {"experts": True}}
    one = {"gpusPerNode": 1}
    assert "QLoRA" not in str(refusal(LLAMA_70B, pool, method=experts, compute=one).remedy)
    assert "QLoRA" in str(refusal(LLAMA_70B, pool, compute=one).remedy)
    full = refusal(LLAMA_8B, pool, method=FULL, compute={"gpusPerNode": 1})
    assert full.remedy is not None
    assert "set compute.offload to true" in full.remedy
    assert "set method.type to QLoRA" in full.remedy


def test_the_refusal_names_the_required_memory_if_no_remedy_fits() -> None:
    profile = CPU.model_copy(update={"memory_per_device": "1Gi"})
    failure = refusal(SMOL, profile, training={"maxSequenceLength": 256})
    assert failure.remedy is not None
    assert failure.remedy.startswith("use a profile with at least")


@pytest.mark.parametrize(
    ("method", "precision", "other"), [("LoRA", "bf16", "fp32"), ("Full", "fp32", "bf16")]
)
def test_on_a_cpu_pool_the_format_that_fits_is_proposed_in_place_of_auto(
    method: str, precision: str, other: str
) -> None:
    job: dict[str, Any] = {"method": {"type": method}, "compute": {"strategy": "DDP"}}

    def memory(name: str) -> int:
        big = CPU.model_copy(update={"memory_per_device": "64Gi"})
        training = {"precision": name, "microBatchSize": 1}
        return plan(SMOL, big, training=training, **job).memory.total

    assert memory(precision) < memory(other)
    pool = CPU.model_copy(update={"memory_per_device": str(memory(precision))})
    failure = refusal(SMOL, pool, training={"precision": "Auto"}, **job)
    assert f"set training.precision to {precision}" in str(failure.remedy)
    assert f"set training.precision to {other}" not in str(failure.remedy)
