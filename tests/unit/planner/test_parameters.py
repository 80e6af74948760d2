"""Trainable parameters of every method, compared with published figures."""

from __future__ import annotations

from finetune_api.facts import ModelFacts
from finetune_operator.planner.parameters import estimate_experts

from tests.unit.planner.facts import LLAMA_8B, SMOL, model
from tests.unit.planner.planning import trained


def test_lora_trains_as_many_parameters_as_peft_reports() -> None:
    # print_trainable_parameters of Llama-3.1-8B with r = 16 and all-linear.
    assert trained(LLAMA_8B, type="LoRA") == 41943040
    assert trained(LLAMA_8B, type="QLoRA") == 41943040
    queries = {"rank": 8, "targetModules": ["q_proj", "v_proj"]}
    assert trained(LLAMA_8B, type="LoRA", lora=queries) == 3407872


def test_other_methods_train_as_many_parameters_as_their_papers_say() -> None:
    layers = LLAMA_8B.layers
    assert trained(LLAMA_8B, type="Full") == LLAMA_8B.parameters
    rows = 2 * 4096 + 2 * 1024 + 2 * 14336 + 4096
    assert trained(LLAMA_8B, type="DoRA") == 41943040 + layers * rows
    assert trained(LLAMA_8B, type="IA3") == layers * (1024 + 1024 + 14336)
    assert trained(LLAMA_8B, type="Prefix") == 20 * layers * 2 * 1024
    assert trained(LLAMA_8B, type="AdaLoRA") > trained(LLAMA_8B, type="LoRA", lora={"rank": 12})


def test_adapters_on_experts_are_counted_for_each_expert() -> None:
    mixtral = model(46702792704, 32, 4096, 14336, (32, 8), 32000)
    assert estimate_experts(LLAMA_8B) == 1
    assert estimate_experts(mixtral) == 8
    moe = {"type": "LoRA", "lora": {"dropout": 0}, "moe": {"experts": True}}
    one = trained(mixtral, type="LoRA")
    feedforward = 16 * 32 * 3 * (4096 + 14336)
    assert trained(mixtral, **moe) == one + 7 * feedforward


def test_modules_to_save_are_trained_entirely() -> None:
    adapters, embedding = trained(LLAMA_8B, type="LoRA"), 128256 * 4096

    def saved(facts: ModelFacts, *names: str) -> int:
        return trained(facts, type="LoRA", lora={"modulesToSave": [*names]}) - adapters

    assert saved(LLAMA_8B, "embed_tokens") == saved(LLAMA_8B, "model.embed_tokens") == embedding
    assert saved(LLAMA_8B, "embed_tokens", "lm_head") == 2 * embedding
    tied = LLAMA_8B.model_copy(update={"has_tied_embeddings": True})
    assert saved(tied, "embed_tokens", "lm_head") == embedding
    assert saved(LLAMA_8B, "embed_tokens", "score") == embedding
    assert saved(LLAMA_8B, "input_layernorm") >= 32 * 4096
    # One that is not known, such as Gemma 3n's embedding per layer, can have most weights.
    assert saved(LLAMA_8B, "embed_tokens_per_layer") == LLAMA_8B.parameters
    positions = LLAMA_8B.context_length * 4096
    assert saved(LLAMA_8B, "wpe") == saved(LLAMA_8B, "embed_positions") == positions
    assert saved(tied, "embed_tokens", "output_projection") == embedding


def test_an_unknown_module_counts_as_the_largest_one() -> None:
    named = {"rank": 16, "targetModules": ["c_attn"]}
    largest = {"rank": 16, "targetModules": ["down_proj"]}
    assert trained(SMOL, type="LoRA", lora=named) == trained(SMOL, type="LoRA", lora=largest)
