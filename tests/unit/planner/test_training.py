"""What the planner chooses for models and pools that people have."""

import pytest
from finetune_api.acceleratorprofile import AcceleratorProfileSpec
from finetune_api.run import DataFacts, Failure, ModelFacts, TrainPlan
from finetune_operator.planner.serving import serving_devices
from finetune_operator.planner.training import ladder, plan_training

from tests.unit.planner.facts import CPU, DATA, H100, LLAMA_8B, LLAMA_70B, SMOL, spec


def plan(
    model: ModelFacts,
    profile: AcceleratorProfileSpec = H100,
    data: DataFacts = DATA,
    **fields: object,
) -> TrainPlan:
    found = plan_training(spec(**fields), model, data, "pool", profile)
    assert isinstance(found, TrainPlan), found
    return found


def refusal(
    model: ModelFacts,
    profile: AcceleratorProfileSpec = H100,
    data: DataFacts = DATA,
    **fields: object,
) -> Failure:
    found = plan_training(spec(**fields), model, data, "pool", profile)
    assert isinstance(found, Failure), found
    return found


FULL = {"type": "Full"}


def test_lora_of_8b_takes_one_h100() -> None:
    found = plan(LLAMA_8B)
    assert (found.nodes, found.gpus_per_node, found.strategy) == (1, 1, "DDP")
    assert found.learning_rate == 1e-4


def test_full_8b_on_a_whole_node_is_divided() -> None:
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


def test_full_70b_on_one_node_is_refused_with_figures_and_ways_out() -> None:
    failure = refusal(LLAMA_70B, method=FULL)
    assert failure.reason == "DoesNotFit"
    assert failure.stage == "train"
    assert "70.55 B parameters" in failure.message
    assert "on each of 8 devices; profile pool has 80.0 GiB" in failure.message
    assert failure.remedy is not None
    assert "set method.type to LoRA" in failure.remedy
    assert "set compute.nodes to" in failure.remedy


def test_small_model_on_a_cpu_pool_takes_one_process() -> None:
    found = plan(SMOL, CPU, training={"maxSequenceLength": 128})
    assert (found.nodes, found.gpus_per_node, found.device) == (1, 1, "cpu")


def test_what_the_job_says_is_honoured() -> None:
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


def test_two_nodes_mean_two_whole_nodes_as_far_as_the_batch_reaches() -> None:
    whole = plan(LLAMA_8B, compute={"nodes": 2}, training={"batchSize": 16})
    assert (whole.nodes, whole.gpus_per_node) == (2, 8)
    small = plan(LLAMA_8B, compute={"nodes": 2}, training={"batchSize": 8})
    assert (small.nodes, small.gpus_per_node) == (2, 4)


def test_batch_that_does_not_divide_is_made_smaller_and_said() -> None:
    found = plan(LLAMA_8B, compute={"gpusPerNode": 3}, training={"batchSize": 16})
    assert found.batch_size == 15
    assert "instead of 16" in found.reason


def test_batch_smaller_than_the_gang_is_refused() -> None:
    failure = refusal(SMOL, compute={"nodes": 2, "gpusPerNode": 8}, training={"batchSize": 8})
    assert failure.reason == "BatchTooSmall"
    assert "2 x 8 devices" in failure.message
    assert failure.remedy is not None
    assert "multiple of 16" in failure.remedy


def test_more_devices_than_a_node_has_are_refused() -> None:
    failure = refusal(SMOL, compute={"gpusPerNode": 16}, training={"batchSize": 64})
    assert failure.reason == "NotEnoughDevices"
    assert failure.message.endswith("nodes of profile pool have 8")


def test_steps_are_counted_over_epochs_and_capped() -> None:
    data = DATA.model_copy(update={"train_sequences": 33})
    fields = {"batchSize": 16, "epochs": 3, "maxSequenceLength": 128}
    assert plan(SMOL, H100, data, training=fields).total_steps == 9
    assert plan(SMOL, H100, data, training={**fields, "maxSteps": 5}).total_steps == 5


def test_data_without_rows_is_refused() -> None:
    data = DATA.model_copy(update={"train_sequences": 0})
    assert refusal(SMOL, H100, data).reason == "EmptyDataset"


def test_rows_shorter_than_the_limit_take_less_without_packing() -> None:
    data = DATA.model_copy(update={"longest_example": 64})
    loose = plan(LLAMA_8B, H100, data, training={"packing": False, "microBatchSize": 1})
    packed = plan(LLAMA_8B, H100, data, training={"packing": True, "microBatchSize": 1})
    assert loose.memory.activations < packed.memory.activations


def test_remedies_name_the_one_field_that_helps() -> None:
    training = {"gradientCheckpointing": False, "maxSequenceLength": 8192}
    failure = refusal(LLAMA_8B, training=training, compute={"gpusPerNode": 1})
    assert failure.remedy is not None
    assert "set training.gradientCheckpointing to true" in failure.remedy
    assert "set training.maxSequenceLength to" in failure.remedy


def test_when_nothing_helps_the_memory_that_would_is_named() -> None:
    profile = CPU.model_copy(update={"memory_per_device": "1Gi"})
    failure = refusal(SMOL, profile, training={"maxSequenceLength": 256})
    assert failure.remedy is not None
    assert failure.remedy.startswith("use a profile with at least")


@pytest.mark.parametrize(("most", "steps"), [(1, [1]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_devices_are_tried_in_powers_of_two_and_all(most: int, steps: list[int]) -> None:
    assert ladder(most) == steps


@pytest.mark.parametrize(
    ("model", "profile", "devices"), [(SMOL, CPU, 1), (LLAMA_8B, H100, 1), (LLAMA_70B, H100, 2)]
)
def test_serving_takes_the_fewest_devices_that_hold_the_model(
    model: ModelFacts, profile: AcceleratorProfileSpec, devices: int
) -> None:
    assert serving_devices(model, "pool", profile) == devices


def test_serving_on_too_little_memory_is_refused() -> None:
    small = H100.model_copy(update={"memory_per_device": "10Gi"})
    found = serving_devices(LLAMA_70B, "pool", small)
    assert isinstance(found, Failure)
    assert found.reason == "DoesNotFit"
    assert "profile pool has 10.0 GiB" in found.message
