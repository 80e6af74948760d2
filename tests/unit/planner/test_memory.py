"""Memory of methods, optimizers and strategies, compared with published figures."""

import pytest
from finetune_api.protocol import Strategy
from finetune_operator.planner.memory import (
    CUDA_OVERHEAD,
    FRAGMENTATION,
    estimate_memory,
    fp32_gradient_bytes,
    frozen_bytes,
    gathered_bytes,
    gradient_sum_bytes,
    host_bytes,
    model_states,
    offloaded_bytes,
)
from finetune_operator.planner.memory_inputs import MemoryInputs, collect_memory_inputs

from tests.unit.planner.facts import DATA, LLAMA_8B, SMOL, spec
from tests.unit.planner.planning import trained


def inputs(**fields: object) -> MemoryInputs:
    return collect_memory_inputs(spec(**fields), DATA, None, "cuda")


def test_a_four_bit_base_takes_as_many_bits_per_weight_as_the_paper_reports() -> None:
    # Dettmers et al. 2023, table 6: 4.127 bits a weight with double quantisation, 4.5 without.
    double = frozen_bytes(LLAMA_8B, inputs(method={"type": "QLoRA"}))
    single = frozen_bytes(
        LLAMA_8B, inputs(method={"type": "QLoRA", "quantization": {"double": False}})
    )
    blocks = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    rest = 2 * (LLAMA_8B.parameters - blocks)
    assert 8 * (double - rest) / blocks == pytest.approx(4.127, abs=0.001)
    assert 8 * (single - rest) / blocks == pytest.approx(4.5, abs=0.001)


def test_modules_to_save_cost_sixteen_bytes_per_weight_next_to_the_frozen_original() -> None:
    lora = {"modulesToSave": ["embed_tokens", "lm_head"]}
    plain, saved = inputs(), inputs(method={"type": "LoRA", "lora": lora})
    copies = 2 * 128256 * 4096
    before, after = model_states(LLAMA_8B, plain), model_states(LLAMA_8B, saved)
    assert after.weights - before.weights == 4 * copies
    assert after.gradients - before.gradients == 4 * copies
    assert after.optimizer - before.optimizer == 8 * copies
    # Two of 32 blocks hold a sixteenth of the adapters; the copies are gathered entirely.
    assert gathered_bytes(LLAMA_8B, saved) - gathered_bytes(LLAMA_8B, plain) == 4 * copies


@pytest.mark.parametrize(
    ("optimizer", "precision", "per_parameter"),
    [
        ("AdamW", "bf16", 16),
        ("AdamW", "fp16", 16),
        ("AdamW", "fp32", 16),
        ("AdamW8bit", "bf16", 10),
        ("PagedAdamW", "bf16", 8),
        ("Adafactor", "bf16", 8),
    ],
)
def test_full_training_costs_so_many_bytes_per_parameter(
    optimizer: str, precision: str, per_parameter: int
) -> None:
    held = model_states(
        LLAMA_8B,
        inputs(method={"type": "Full"}, training={"optimizer": optimizer, "precision": precision}),
    )
    total = held.weights + held.gradients + held.optimizer
    assert total / LLAMA_8B.parameters == pytest.approx(per_parameter, abs=0.01)


def test_adalora_keeps_importance_scores_with_the_optimizer_states() -> None:
    ada = inputs(method={"type": "AdaLoRA"})
    assert model_states(LLAMA_8B, ada).optimizer == 20 * trained(LLAMA_8B, type="AdaLoRA")


def test_offload_moves_states_from_the_device_to_the_host() -> None:
    job = {"method": {"type": "Full"}, "compute": {"offload": True}}
    away, here = inputs(**job), inputs(method={"type": "Full"})
    for strategy in ("ZeRO1", "ZeRO2", "ZeRO3"):
        moved = estimate_memory(LLAMA_8B, away, strategy, 4, 1, 0)
        kept = estimate_memory(LLAMA_8B, here, strategy, 4, 1, 0)
        assert moved.optimizer == 0
        weights = kept.weights if strategy == "ZeRO3" else 0
        assert moved.weights == kept.weights - weights
        gradients = LLAMA_8B.parameters  # 4 bytes each, a quarter of them
        # ZeRO-3 sums micro-batches in a second fp32 buffer on the host; the others keep a 16-bit
        # copy of the updated weights there.
        buffer = gradients if strategy == "ZeRO3" else gradients / 2
        expected = kept.optimizer + gradients + buffer + weights
        assert offloaded_bytes(LLAMA_8B, away, strategy, 4) == pytest.approx(expected, abs=4)
    moved = estimate_memory(LLAMA_8B, away, "FSDP", 4, 1, 0)
    kept = estimate_memory(LLAMA_8B, here, "FSDP", 4, 1, 0)
    assert (moved.weights, moved.gradients, moved.optimizer) == (0, 0, 0)
    assert (
        offloaded_bytes(LLAMA_8B, away, "FSDP", 4) == kept.weights + kept.gradients + kept.optimizer
    )
    assert moved.total < kept.total


def test_on_a_cpu_pool_offload_saves_nothing() -> None:
    job = spec(method={"type": "Full"}, compute={"offload": True})
    away = estimate_memory(SMOL, collect_memory_inputs(job, DATA, None, "cpu"), "FSDP", 2, 1, 0)
    here = estimate_memory(
        SMOL,
        collect_memory_inputs(spec(method={"type": "Full"}), DATA, None, "cpu"),
        "FSDP",
        2,
        1,
        0,
    )
    assert away == here


@pytest.mark.parametrize("strategy", ["ZeRO1", "ZeRO2", "ZeRO3"])
def test_on_a_cpu_pool_the_buffers_of_zero_offload_are_counted_too(strategy: Strategy) -> None:
    def total(**fields: object) -> int:
        job = spec(method={"type": "Full"}, training={"precision": "bf16"}, **fields)
        needs = collect_memory_inputs(job, DATA, None, "cpu")
        return estimate_memory(SMOL, needs, strategy, 2, 1, 0).total

    # The fp32 gradients that the optimizer reads are never freed: 4 bytes, for half the weights.
    assert total(compute={"offload": True}) - total() > 2 * SMOL.parameters


def test_each_zero_stage_shards_its_states() -> None:
    full = inputs(method={"type": "Full"})
    whole = model_states(LLAMA_8B, full)
    one = estimate_memory(LLAMA_8B, full, "ZeRO1", 8, 1, 0)
    assert (one.weights, one.gradients, one.optimizer) == (
        whole.weights,
        whole.gradients,
        -(-whole.optimizer // 8),
    )
    three = estimate_memory(LLAMA_8B, full, "ZeRO3", 8, 1, 0)
    assert three.weights == -(-whole.weights // 8)


def test_zero_copies_gradients_to_fp32_for_the_optimizer_step() -> None:
    # DeepSpeed 0.19.8, stage_1_and_2.py: single_grad_partition = flat_grad_partition.to(fp32).
    full, adapters = inputs(method={"type": "Full"}), inputs(method={"type": "LoRA"})
    per_rank = LLAMA_8B.parameters // 2
    assert fp32_gradient_bytes(LLAMA_8B, full, "ZeRO2", 2) == 4 * per_rank
    assert fp32_gradient_bytes(LLAMA_8B, full, "ZeRO3", 2) == 4 * 10**9
    assert fp32_gradient_bytes(LLAMA_8B, adapters, "ZeRO2", 2) == 0
    assert fp32_gradient_bytes(LLAMA_8B, full, "FSDP", 2) == 0
    found = estimate_memory(LLAMA_8B, full, "ZeRO2", 2, 1, 0)
    held = found.weights + found.gradients + found.optimizer
    assert found.total > held + 4 * per_rank > held + found.activations


def test_zero_adds_bf16_gradients_in_fp32() -> None:
    full, adapters = inputs(method={"type": "Full"}), inputs(method={"type": "LoRA"})
    # ZeRO-1 sums all weights in `grad_accum`, and reduces them into the buffer of its shard.
    assert gradient_sum_bytes(LLAMA_8B, full, "ZeRO1", 2) == 6 * LLAMA_8B.parameters
    for strategy in ("ZeRO2", "ZeRO3"):
        assert gradient_sum_bytes(LLAMA_8B, full, strategy, 2) == 2 * LLAMA_8B.parameters
        assert gradient_sum_bytes(LLAMA_8B, adapters, strategy, 2) == 0
        found = estimate_memory(LLAMA_8B, full, strategy, 2, 1, 0)
        held = found.weights + found.gradients + found.optimizer + found.activations
        assert found.total > held + 2 * LLAMA_8B.parameters
    for strategy in ("DDP", "FSDP"):
        assert gradient_sum_bytes(LLAMA_8B, full, strategy, 2) == 0


@pytest.mark.parametrize(("strategy", "per_parameter"), [("ZeRO1", 6), ("ZeRO2", 2), ("ZeRO3", 0)])
def test_with_offload_only_zero3_sums_gradients_on_the_host(
    strategy: Strategy, per_parameter: int
) -> None:
    # DeepSpeed 0.19.8, _build_compact_grad_partition_buffer: device=current_device_name().
    away = inputs(method={"type": "Full"}, compute={"offload": True})
    found = estimate_memory(LLAMA_8B, away, strategy, 2, 1, 0)
    tensors = (found.total - CUDA_OVERHEAD) / (1 + FRAGMENTATION)
    forward = found.activations
    if strategy == "ZeRO3":
        forward += gathered_bytes(LLAMA_8B, away)
    sums = tensors - found.weights - found.gradients - forward
    assert sums == pytest.approx(per_parameter * LLAMA_8B.parameters, abs=8)


def test_autocast_keeps_a_16_bit_copy_of_every_fp32_weight() -> None:
    full = inputs(method={"type": "Full"})
    found = estimate_memory(LLAMA_8B, full, "DDP", 1, 1, 0)
    assert found.total > (16 + 2) * LLAMA_8B.parameters + found.activations


def test_zero3_holds_the_whole_four_bit_base_before_it_is_sharded() -> None:
    four_bits = inputs(method={"type": "QLoRA"}, training={"maxSequenceLength": 16})
    found = estimate_memory(LLAMA_8B, four_bits, "ZeRO3", 16, 1, 0)
    assert found.weights < frozen_bytes(LLAMA_8B, four_bits) / 10
    assert found.total > frozen_bytes(LLAMA_8B, four_bits)


def test_the_host_holds_a_copy_of_the_states_while_a_checkpoint_is_written() -> None:
    full = inputs(method={"type": "Full"})
    share = 12 * LLAMA_8B.parameters // 8
    assert host_bytes(LLAMA_8B, full, "ZeRO2", 8, 8) == share
    paged = inputs(method={"type": "Full"}, training={"optimizer": "PagedAdamW8bit"})
    assert host_bytes(LLAMA_8B, paged, "DDP", 8, 8) == share // 2
    away = inputs(method={"type": "Full"}, compute={"offload": True})
    moved = offloaded_bytes(LLAMA_8B, away, "ZeRO2", 8)
    assert host_bytes(LLAMA_8B, away, "ZeRO2", 8, 8) == share + moved


def test_under_fsdp_one_process_of_a_node_loads_the_whole_model() -> None:
    adapters, full = inputs(method={"type": "LoRA"}), inputs(method={"type": "Full"})
    assert host_bytes(LLAMA_8B, adapters, "FSDP", 4, 1) > 2 * LLAMA_8B.parameters
    assert host_bytes(LLAMA_8B, adapters, "ZeRO3", 4, 1) < LLAMA_8B.parameters / 10
    assert host_bytes(LLAMA_8B, full, "FSDP", 64, 8) == LLAMA_8B.parameters // 2
