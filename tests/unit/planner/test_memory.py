"""How much memory methods, optimizers and strategies take, against figures that are known."""

import pytest
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.run import ModelFacts
from finetune_operator.planner.memory import (
    estimate,
    frozen_bytes,
    host_bytes,
    offloaded_bytes,
    states,
    widened_bytes,
)
from finetune_operator.planner.memory_inputs import MemoryInputs, load_of
from finetune_operator.planner.parameters import experts, trained_parameters

from tests.unit.planner.facts import DATA, LLAMA_8B, SMOL, model, spec


def load(**fields: object) -> MemoryInputs:
    return load_of(spec(**fields), DATA, None, "cuda")


def trained(facts: ModelFacts, **method: object) -> int:
    job: FineTuneJobSpec = spec(method=method)
    return trained_parameters(facts, job.method)


def test_the_adapters_of_lora_are_as_many_as_peft_counts() -> None:
    # print_trainable_parameters of Llama-3.1-8B with r = 16 and all-linear.
    assert trained(LLAMA_8B, type="LoRA") == 41943040
    assert trained(LLAMA_8B, type="QLoRA") == 41943040
    queries = {"rank": 8, "targetModules": ["q_proj", "v_proj"]}
    assert trained(LLAMA_8B, type="LoRA", lora=queries) == 3407872


def test_other_methods_train_what_their_papers_say() -> None:
    layers = LLAMA_8B.layers
    assert trained(LLAMA_8B, type="Full") == LLAMA_8B.parameters
    rows = 2 * 4096 + 2 * 1024 + 2 * 14336 + 4096
    assert trained(LLAMA_8B, type="DoRA") == 41943040 + layers * rows
    assert trained(LLAMA_8B, type="IA3") == layers * (1024 + 1024 + 14336)
    assert trained(LLAMA_8B, type="Prefix") == 20 * layers * 2 * 1024
    assert trained(LLAMA_8B, type="AdaLoRA") > trained(LLAMA_8B, type="LoRA", lora={"rank": 12})


def test_adapters_on_experts_are_counted_for_each_expert() -> None:
    mixtral = model(46702792704, 32, 4096, 14336, (32, 8), 32000)
    assert experts(LLAMA_8B) == 1
    assert experts(mixtral) == 8
    moe = {"type": "LoRA", "lora": {"dropout": 0}, "moe": {"experts": True}}
    one = trained(mixtral, type="LoRA")
    feedforward = 16 * 32 * 3 * (4096 + 14336)
    assert trained(mixtral, **moe) == one + 7 * feedforward


def test_an_unknown_module_counts_as_the_largest() -> None:
    named = {"rank": 16, "targetModules": ["c_attn"]}
    largest = {"rank": 16, "targetModules": ["down_proj"]}
    assert trained(SMOL, type="LoRA", lora=named) == trained(SMOL, type="LoRA", lora=largest)


def test_a_base_in_four_bits_takes_a_third_of_one_in_sixteen() -> None:
    # Dettmers et al. 2023, table 6: 4.127 bits a weight with double quantisation, 4.5 without.
    double = frozen_bytes(LLAMA_8B, load(method={"type": "QLoRA"}))
    single = frozen_bytes(
        LLAMA_8B, load(method={"type": "QLoRA", "quantization": {"double": False}})
    )
    blocks = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    rest = 2 * (LLAMA_8B.parameters - blocks)
    assert 8 * (double - rest) / blocks == pytest.approx(4.127, abs=0.001)
    assert 8 * (single - rest) / blocks == pytest.approx(4.5, abs=0.001)


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
def test_a_weight_of_full_training_costs(
    optimizer: str, precision: str, per_parameter: int
) -> None:
    held = states(
        LLAMA_8B,
        load(method={"type": "Full"}, training={"optimizer": optimizer, "precision": precision}),
    )
    total = held.weights + held.gradients + held.optimizer
    assert total / LLAMA_8B.parameters == pytest.approx(per_parameter, abs=0.01)


def test_adalora_keeps_what_it_ranks_by() -> None:
    ada = load(method={"type": "AdaLoRA"})
    assert states(LLAMA_8B, ada).optimizer == 20 * trained(LLAMA_8B, type="AdaLoRA")


def test_offload_takes_from_the_device_what_it_gives_to_the_host() -> None:
    job = {"method": {"type": "Full"}, "compute": {"offload": True}}
    away, here = load(**job), load(method={"type": "Full"})
    for strategy in ("ZeRO1", "ZeRO2", "ZeRO3"):
        moved = estimate(LLAMA_8B, away, strategy, 4, 1, 0)
        kept = estimate(LLAMA_8B, here, strategy, 4, 1, 0)
        assert moved.optimizer == 0
        weights = kept.weights if strategy == "ZeRO3" else 0
        assert moved.weights == kept.weights - weights
        gradients = LLAMA_8B.parameters  # 4 bytes each, a quarter of them
        assert offloaded_bytes(LLAMA_8B, away, strategy, 4) == kept.optimizer + gradients + weights
    moved = estimate(LLAMA_8B, away, "FSDP", 4, 1, 0)
    kept = estimate(LLAMA_8B, here, "FSDP", 4, 1, 0)
    assert (moved.weights, moved.gradients, moved.optimizer) == (0, 0, 0)
    assert (
        offloaded_bytes(LLAMA_8B, away, "FSDP", 4) == kept.weights + kept.gradients + kept.optimizer
    )
    assert moved.total < kept.total


def test_on_a_cpu_pool_offload_saves_nothing() -> None:
    job = spec(method={"type": "Full"}, compute={"offload": True})
    away = estimate(SMOL, load_of(job, DATA, None, "cpu"), "FSDP", 2, 1, 0)
    here = estimate(
        SMOL, load_of(spec(method={"type": "Full"}), DATA, None, "cpu"), "FSDP", 2, 1, 0
    )
    assert away == here


def test_sharding_divides_what_it_says() -> None:
    full = load(method={"type": "Full"})
    whole = states(LLAMA_8B, full)
    one = estimate(LLAMA_8B, full, "ZeRO1", 8, 1, 0)
    assert (one.weights, one.gradients, one.optimizer) == (
        whole.weights,
        whole.gradients,
        -(-whole.optimizer // 8),
    )
    three = estimate(LLAMA_8B, full, "ZeRO3", 8, 1, 0)
    assert three.weights == -(-whole.weights // 8)


def test_zero_makes_fp32_gradients_for_its_step() -> None:
    # DeepSpeed 0.19.8, stage_1_and_2.py: single_grad_partition = flat_grad_partition.to(fp32).
    full, adapters = load(method={"type": "Full"}), load(method={"type": "LoRA"})
    per_rank = LLAMA_8B.parameters // 2
    assert widened_bytes(LLAMA_8B, full, "ZeRO2", 2) == 4 * per_rank
    assert widened_bytes(LLAMA_8B, full, "ZeRO3", 2) == 4 * 10**9
    assert widened_bytes(LLAMA_8B, adapters, "ZeRO2", 2) == 0
    assert widened_bytes(LLAMA_8B, full, "FSDP", 2) == 0
    found = estimate(LLAMA_8B, full, "ZeRO2", 2, 1, 0)
    held = found.weights + found.gradients + found.optimizer
    assert found.total > held + 4 * per_rank > held + found.activations


def test_autocast_keeps_sixteen_bits_of_every_weight_beside_its_thirty_two() -> None:
    full = load(method={"type": "Full"})
    found = estimate(LLAMA_8B, full, "DDP", 1, 1, 0)
    assert found.total > (16 + 2) * LLAMA_8B.parameters + found.activations


def test_zero_3_holds_a_base_in_four_bits_whole_before_it_is_divided() -> None:
    four_bits = load(method={"type": "QLoRA"}, training={"maxSequenceLength": 16})
    found = estimate(LLAMA_8B, four_bits, "ZeRO3", 16, 1, 0)
    assert found.weights < frozen_bytes(LLAMA_8B, four_bits) / 10
    assert found.total > frozen_bytes(LLAMA_8B, four_bits)


def test_the_host_holds_a_copy_of_the_states_until_they_are_saved() -> None:
    full = load(method={"type": "Full"})
    share = 12 * LLAMA_8B.parameters // 8
    assert host_bytes(LLAMA_8B, full, "ZeRO2", 8, 8) == share
    paged = load(method={"type": "Full"}, training={"optimizer": "PagedAdamW8bit"})
    assert host_bytes(LLAMA_8B, paged, "DDP", 8, 8) == share // 2
    away = load(method={"type": "Full"}, compute={"offload": True})
    moved = offloaded_bytes(LLAMA_8B, away, "ZeRO2", 8)
    assert host_bytes(LLAMA_8B, away, "ZeRO2", 8, 8) == share + moved


def test_under_fsdp_one_process_of_a_node_loads_the_whole_model() -> None:
    adapters, full = load(method={"type": "LoRA"}), load(method={"type": "Full"})
    assert host_bytes(LLAMA_8B, adapters, "FSDP", 4, 1) > 2 * LLAMA_8B.parameters
    assert host_bytes(LLAMA_8B, adapters, "ZeRO3", 4, 1) < LLAMA_8B.parameters / 10
    assert host_bytes(LLAMA_8B, full, "FSDP", 64, 8) == LLAMA_8B.parameters // 2
