"""What the planner chooses for common models and pools."""

from typing import Any

import pytest
from finetune_api.train_plan import TrainPlan
from finetune_operator.planner.training_plan import list_device_counts, plan_training

from tests.unit.planner.facts import CPU, DATA, H100, LLAMA_8B, LLAMA_70B, SMOL, spec
from tests.unit.planner.planning import FULL, plan, refusal


def test_lora_of_8b_takes_one_h100() -> None:
    found = plan(LLAMA_8B)
    assert (found.nodes, found.gpus_per_node, found.strategy) == (1, 1, "DDP")
    assert found.learning_rate == 1e-4


def test_full_8b_on_a_whole_node_is_sharded() -> None:
    found = plan(LLAMA_8B, method=FULL, compute={"gpusPerNode": 8})
    assert (found.nodes, found.world_size, found.strategy) == (1, 8, "ZeRO2")
    assert found.learning_rate == 1e-5


def test_full_8b_takes_the_fewest_devices_that_fit() -> None:
    found = plan(LLAMA_8B, method=FULL)
    assert found.nodes == 1
    assert found.gpus_per_node < 8
    assert found.strategy != "DDP"


def test_lora_of_70b_fits_on_one_node() -> None:
    found = plan(LLAMA_70B, compute={"gpusPerNode": 8})
    assert (found.nodes, found.world_size, found.strategy) == (1, 8, "ZeRO3")


def test_full_70b_needs_several_nodes() -> None:
    pool = H100.model_copy(update={"max_nodes": 8})
    found = plan(LLAMA_70B, pool, method=FULL, training={"batchSize": 64})
    assert found.nodes > 1
    assert (found.gpus_per_node, found.strategy) == (8, "FSDP")


def test_small_model_on_a_cpu_pool_takes_one_process() -> None:
    found = plan(SMOL, CPU, training={"maxSequenceLength": 128})
    assert (found.nodes, found.gpus_per_node, found.device) == (1, 1, "cpu")


def test_fields_that_the_job_sets_are_honoured() -> None:
    found = plan(
        SMOL,
        CPU,
        compute={"nodes": 2, "gpusPerNode": 1, "strategy": "ZeRO3"},
        training={
            "maxSequenceLength": 128,
            "batchSize": 16,
            "microBatchSize": 4,
            "learningRate": 0.002,
            "maxSteps": 30,
        },
    )
    assert (found.nodes, found.world_size, found.strategy) == (2, 2, "ZeRO3")
    assert (found.micro_batch_size, found.gradient_accumulation) == (4, 2)
    assert found.learning_rate == 0.002
    assert found.total_steps == 30


def test_two_nodes_are_whole_nodes_unless_the_batch_is_too_small() -> None:
    whole = plan(LLAMA_8B, compute={"nodes": 2}, training={"batchSize": 16})
    assert (whole.nodes, whole.gpus_per_node) == (2, 8)
    small = plan(LLAMA_8B, compute={"nodes": 2}, training={"batchSize": 8})
    assert (small.nodes, small.gpus_per_node) == (2, 4)


def test_an_indivisible_batch_is_reduced_and_the_reason_says_so() -> None:
    found = plan(LLAMA_8B, compute={"gpusPerNode": 3}, training={"batchSize": 16})
    assert found.batch_size == 15
    assert "instead of 16" in found.reason


def test_steps_are_counted_over_epochs_and_capped_by_max_steps() -> None:
    data = DATA.model_copy(update={"train_sequences": 33})
    fields = {"batchSize": 16, "epochs": 3, "maxSequenceLength": 128}
    assert plan(SMOL, H100, data, training=fields).total_steps == 9
    assert plan(SMOL, H100, data, training={**fields, "maxSteps": 5}).total_steps == 5


@pytest.mark.parametrize("changes", [{"optimizer": "AdamW8bit"}, {"optimizer": "Adafactor"}])
def test_an_optimizer_that_needs_unsharded_weights_gets_ddp(changes: dict[str, str]) -> None:
    found = plan(LLAMA_8B, compute={"gpusPerNode": 8}, training=changes)
    assert found.strategy == "DDP"


def test_adalora_is_never_sharded() -> None:
    assert plan(LLAMA_8B, compute={"gpusPerNode": 8}, method={"type": "AdaLoRA"}).strategy == "DDP"
    assert refusal(LLAMA_70B, compute={"gpusPerNode": 8}, method={"type": "AdaLoRA"})


def test_qlora_of_70b_takes_one_h100_and_fsdp_on_smaller_devices() -> None:
    found = plan(LLAMA_70B, method={"type": "QLoRA"}, training={"maxSequenceLength": 1024})
    assert (found.world_size, found.strategy) == (1, "DDP")
    small = H100.model_copy(update={"memory_per_device": "24Gi"})
    found = plan(LLAMA_70B, small, method={"type": "QLoRA"}, compute={"gpusPerNode": 8})
    assert found.strategy == "FSDP"


def test_dora_gets_fsdp_because_zero3_is_a_forbidden_combination() -> None:
    found = plan(LLAMA_70B, method={"type": "DoRA"}, compute={"gpusPerNode": 8})
    assert found.strategy == "FSDP"


def test_offload_moves_the_optimizer_to_the_host_if_its_memory_suffices() -> None:
    pool = H100.model_copy(update={"host_memory_per_device": "240Gi"})
    found = plan(LLAMA_8B, pool, method=FULL, compute={"offload": True})
    assert (found.world_size, found.strategy, found.offload) == (1, "ZeRO2", True)
    assert found.memory.optimizer == 0
    assert "ZeRO2 and offload" in found.reason
    failure = refusal(LLAMA_8B, H100, method=FULL, compute={"offload": True, "gpusPerNode": 1})
    assert failure.reason == "HostMemoryTooSmall"
    assert "GiB of host memory for each device; profile pool has 180.0 GiB" in failure.message


def test_a_host_too_small_for_checkpoint_copies_takes_more_devices() -> None:
    small = H100.model_copy(update={"host_memory_per_device": "16Gi"})
    assert plan(LLAMA_8B, small, method=FULL).world_size == 8
    assert plan(LLAMA_8B, H100, method=FULL).world_size == 2
    failure = refusal(LLAMA_8B, small, method=FULL, compute={"gpusPerNode": 4})
    assert failure.reason == "HostMemoryTooSmall"


def test_zero_is_never_chosen_for_fp16_on_a_cpu_pool() -> None:
    half: dict[str, Any] = {"training": {"precision": "fp16", "maxSequenceLength": 128}}
    found = plan(SMOL, CPU, compute={"offload": True}, **half)
    assert found.strategy == "FSDP"
    assert plan(SMOL, H100, compute={"strategy": "ZeRO2"}, **half).strategy == "ZeRO2"
    failure = refusal(SMOL, CPU, compute={"strategy": "ZeRO2"}, **half)
    assert failure.reason == "PrecisionUnsupported"


def test_the_plan_carries_the_peak_flops_of_the_profile() -> None:
    pool = H100.model_copy(update={"peak_flops_per_device": 9.89e14})
    assert plan(LLAMA_8B, pool).peak_flops == 9.89e14
    assert plan(LLAMA_8B).peak_flops is None


def test_steps_of_grpo_count_prompts_and_updates_in_whole_groups() -> None:
    grpo = {"rewards": [{"type": "length"}], "generations": 8, "updates": 2}
    data = DATA.model_copy(update={"format": "prompt", "train_sequences": 33})
    training = {"batchSize": 16, "epochs": 3}
    fields: dict[str, Any] = {"objective": "GRPO", "grpo": grpo, "training": training}
    assert plan(SMOL, H100, data, **fields).total_steps == 17 * 3 * 2
    three = plan(
        SMOL, H100, data, **fields | {"training": {"batchSize": 24}}, compute={"gpusPerNode": 3}
    )
    assert (three.batch_size, three.world_size) == (24, 3)
    failure = refusal(SMOL, H100, data, **fields, compute={"gpusPerNode": 3})
    assert failure.reason == "BatchTooSmall"
    assert "in whole groups of 8" in failure.message
    assert failure.remedy is not None
    assert "multiple of 24" in failure.remedy


def test_a_reward_model_adds_its_weights_to_the_trained_model() -> None:
    job = spec(objective="GRPO", grpo={"rewardModel": {"uri": "hf://a/b"}})
    alone = plan_training(job, LLAMA_8B, DATA, "pool", H100)
    both = plan_training(job, LLAMA_8B, DATA, "pool", H100, LLAMA_8B)
    assert isinstance(alone, TrainPlan)
    assert isinstance(both, TrainPlan)
    assert both.memory.weights == alone.memory.weights + 2 * LLAMA_8B.parameters


@pytest.mark.parametrize(("most", "counts"), [(1, [1]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_device_counts_are_powers_of_two_and_the_maximum(most: int, counts: list[int]) -> None:
    assert list_device_counts(most) == counts


@pytest.mark.parametrize("method", ["LoRA", "Full", "QLoRA"])
@pytest.mark.parametrize("strategy", ["DDP", "ZeRO2", "ZeRO3", "FSDP"])
def test_auto_on_a_cpu_pool_has_memory_for_either_format(method: str, strategy: str) -> None:
    job: dict[str, Any] = {"method": {"type": method}, "compute": {"strategy": strategy}}
    training = {"maxSequenceLength": 128, "microBatchSize": 1}
    pool = CPU.model_copy(update={"memory_per_device": "16Gi"})
    totals = {
        precision: plan(SMOL, pool, **job, training={**training, "precision": precision})
        for precision in ("Auto", "bf16", "fp32")
    }
    either = max(totals["bf16"].memory.total, totals["fp32"].memory.total)
    assert totals["Auto"].memory.total == either
    assert "memory for fp32 or bf16" in totals["Auto"].reason
    assert "precision" not in totals["fp32"].reason


def test_auto_on_a_gpu_pool_is_planned_for_bf16() -> None:
    auto, half = plan(LLAMA_8B), plan(LLAMA_8B, training={"precision": "bf16"})
    assert auto.memory == half.memory
    assert "memory for bf16;" in auto.reason + ";"


@pytest.mark.parametrize("objective", ["SFT", "DPO", "KTO", "ORPO", "SimPO", "Reward"])
def test_the_plan_notes_where_dropout_is_turned_off(objective: str) -> None:
    formats = {"SFT": "chat", "KTO": "unpaired"}
    data = DATA.model_copy(update={"format": formats.get(objective, "preference")})
    lora = {"type": "LoRA", "lora": {"dropout": 0.1}}
    noted = f"no dropout, as {objective} compares exact probabilities"
    job: dict[str, Any] = {"objective": objective, "training": {"microBatchSize": 1}}
    with_dropout = plan(LLAMA_8B, H100, data, method=lora, **job)
    without = plan(LLAMA_8B, H100, data, method={"type": "LoRA", "lora": {"dropout": 0}}, **job)
    assert (noted in with_dropout.reason) == (objective != "SFT")
    assert noted not in without.reason
