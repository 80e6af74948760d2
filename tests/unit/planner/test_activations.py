"""Memory of activations, by sequence length, objective and recomputation."""

from __future__ import annotations

import pytest
from finetune_api.facts import ModelFacts
from finetune_operator.planner.activations import activation_bytes, transient_bytes
from finetune_operator.planner.memory_inputs import collect_memory_inputs

from tests.unit.planner.facts import DATA, H100, LLAMA_8B, spec
from tests.unit.planner.planning import plan


def test_short_sequences_take_less_memory_without_packing() -> None:
    short = DATA.model_copy(update={"longest_example": 64})
    loose = plan(LLAMA_8B, H100, short, training={"microBatchSize": 1})
    full = short.model_copy(update={"packed": True})
    packed = plan(LLAMA_8B, H100, full, training={"microBatchSize": 1})
    assert loose.memory.activations < packed.memory.activations


def activations(model: ModelFacts = LLAMA_8B, **fields: object) -> int:
    training = {"microBatchSize": 1, **fields.pop("training", {})}  # type: ignore[dict-item]
    return plan(model, training=training, **fields).memory.activations


def test_a_preference_pair_is_two_sequences_and_grpo_adds_its_completion() -> None:
    one = activations()
    assert activations(objective="KTO") == one
    assert 1.3 * one < activations(objective="DPO") <= 2 * one
    assert activations(objective="SimPO") == activations(objective="DPO")
    grpo = {"rewards": [{"type": "length"}], "maxNewTokens": DATA.longest_example}
    assert activations(objective="GRPO", grpo=grpo) > 1.3 * one


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_trained_head_takes_eight_bytes_a_weight_while_its_gradient_is_computed(
    precision: str,
) -> None:
    # Measured: 8.1 bytes in both precisions, where the logits are computed again.
    lora = {"modulesToSave": ["lm_head"]}
    method = {"type": "LoRA", "lora": lora}
    training = {"precision": precision}
    inputs = collect_memory_inputs(spec(method=method, training=training), DATA, None, "cuda")
    assert transient_bytes(LLAMA_8B, inputs) == 8 * 128256 * 4096


@pytest.mark.parametrize("name", ["FalconH1", "Gemma3", "HyperCLOVAX", "NanoChat"])
def test_all_logits_are_counted_only_for_models_that_scale_them(name: str) -> None:
    scaled = LLAMA_8B.model_copy(update={"architecture": f"{name}ForCausalLM"})
    packed = DATA.model_copy(update={"packed": True})
    few = plan(LLAMA_8B, H100, packed, training={"microBatchSize": 1}).memory.activations
    every = plan(scaled, H100, packed, training={"microBatchSize": 1}).memory.activations
    assert every - few > 2048 * 128256 * 2
    assert activations(objective="Reward") < activations(objective="DPO")


@pytest.mark.parametrize(
    ("training", "per_score"),
    [
        # Those of one layer, and three gradients of them; measured in test_score_memory.py.
        ({}, 8 + 10),
        ({"gradientCheckpointing": False}, 32 * 8 + 10),
        # Each of the 32 layers keeps the product of queries and keys.
        ({"selectiveCheckpointing": True}, 32 * 2 + 8 + 10),
        ({"precision": "fp32"}, 8 + 12),
    ],
)
@pytest.mark.parametrize("architecture", ["VaultGemmaForCausalLM", "GptOssForCausalLM"])
def test_eager_attention_stores_its_scores(
    training: dict[str, object], per_score: int, architecture: str
) -> None:
    def needed(name: str) -> int:
        model = LLAMA_8B.model_copy(update={"architecture": name})
        job = spec(objective="Reward", training=training)
        packed = DATA.model_copy(update={"packed": True})
        return activation_bytes(model, collect_memory_inputs(job, packed, None, "cuda"), 1)

    scores = 2 * 32 * 2048**2  # sequences of a pair, heads, positions of queries and keys
    assert needed(architecture) - needed("LlamaForCausalLM") == per_score * scores


def test_more_recomputation_takes_less_memory() -> None:
    whole = activations(training={"gradientCheckpointing": False})
    some = activations(training={"selectiveCheckpointing": True})
    assert activations() < some < whole
    assert activations(training={"gradientCheckpointing": True}) == activations()
    prefix = {"type": "Prefix"}
    assert activations(method=prefix) > 2 * activations()
