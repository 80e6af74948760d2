"""Loading a model and applying a method, for several architectures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.finetunejob import FineTuneJobSpec, RopeScaling
from finetune_trainer.methods import add_token_rows, apply_method, load_base_model
from finetune_trainer.methods.target_modules import select_ia3_layers, select_layers
from finetune_trainer.runtime.errors import UserError
from safetensors.numpy import load_file, save_file
from transformers import BloomConfig, BloomForCausalLM

from tests.trainer import families
from tests.trainer.tiny import CONTEXT, VOCABULARY, tiny_model


def test_a_snapshot_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError) as caught:
        load_base_model(folder, torch.float32)
    failure = caught.value.failure
    assert failure.reason == "ModelIncomplete"
    assert "model.layers.1.mlp.up_proj.weight" in failure.message
    assert failure.remedy


def test_a_model_without_sdpa_is_loaded_with_eager_attention(tmp_path: Path) -> None:
    config = BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2)
    BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")
    assert load_base_model(tmp_path / "bloom", torch.float32).config._attn_implementation == "eager"


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_rope_scaling_is_saved_with_the_model(tmp_path: Path, kind: str) -> None:
    folder = tiny_model(tmp_path / "tiny")
    rope = RopeScaling.model_validate({"type": kind, "factor": 4})
    plain, scaled = (
        load_base_model(folder, torch.float32),
        load_base_model(folder, torch.float32, rope=rope),
    )
    # Longer than the original context, where dynamic positions differ too.
    ids = torch.arange(2 * CONTEXT).view(1, -1) % VOCABULARY
    with torch.no_grad():
        expected = scaled.eval()(input_ids=ids).logits
        assert float((expected - plain.eval()(input_ids=ids).logits).abs().max()) > 1e-3
        scaled.save_pretrained(tmp_path / "saved")
        again = load_base_model(tmp_path / "saved", torch.float32).eval()
        assert torch.equal(again(input_ids=ids).logits, expected)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    saved = config.get("rope_parameters") or config["rope_scaling"]
    assert saved["rope_type"] == kind
    assert saved["factor"] == 4
    # vLLM multiplies max_position_embeddings by the factor, for yarn the original one.
    original = saved.get("original_max_position_embeddings", config["max_position_embeddings"])
    assert original == CONTEXT


def test_linear_scaling_divides_every_position(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny")
    rope = RopeScaling.model_validate({"type": "linear", "factor": 2})
    plain, half = (
        load_base_model(folder, torch.float32),
        load_base_model(folder, torch.float32, rope=rope),
    )
    ids = torch.arange(20).view(1, -1)
    with torch.no_grad():
        near = plain(input_ids=ids, position_ids=ids).logits
        far = half(input_ids=ids, position_ids=2 * ids).logits
    assert torch.allclose(near, far, atol=1e-5)


@pytest.mark.parametrize("make", [tiny_model, families.tiny_qwen, families.tiny_gpt2])
def test_new_rows_start_as_the_mean_of_the_existing_rows(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    model = load_base_model(make(tmp_path / "model"), torch.float32)
    before = model.get_input_embeddings().weight.detach().clone()
    add_token_rows(model, [VOCABULARY, VOCABULARY + 1])
    after = model.get_input_embeddings().weight
    assert after.shape[0] == VOCABULARY + 2 == model.config.vocab_size
    assert torch.equal(after[:VOCABULARY], before)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        mean = layer.weight[:VOCABULARY].mean(0).expand(2, -1)
        assert torch.allclose(layer.weight[VOCABULARY:], mean, atol=1e-6)
    tied = model.get_output_embeddings().weight is after
    assert tied == model.config.tie_word_embeddings


def test_unused_rows_are_taken_before_the_embedding_grows(tmp_path: Path) -> None:
    model = load_base_model(tiny_model(tmp_path / "model"), torch.float32)
    add_token_rows(model, [2040, 2041])
    assert model.get_input_embeddings().weight.shape[0] == VOCABULARY


def test_only_the_rows_of_new_tokens_are_trained(tmp_path: Path) -> None:
    model = load_base_model(families.tiny_qwen(tmp_path / "model"), torch.bfloat16)
    add_token_rows(model, [VOCABULARY])
    spec = {"method": {"type": "LoRA"}, **JOB}
    adapted = apply_method(model, FineTuneJobSpec.model_validate(spec), 10, [VOCABULARY])
    rows = {n: w for n, w in adapted.named_parameters() if w.requires_grad and "token" in n}
    assert {name.split(".")[-4] for name in rows} == {"embed_tokens", "lm_head"}
    assert all(w.shape == (1, 64) and w.dtype == torch.float32 for w in rows.values())


JOB: dict[str, Any] = {
    "model": {"uri": "pvc://models/tiny"},
    "dataset": {"train": [{"uri": "pvc://data/rows.jsonl"}]},
}


def test_an_unknown_target_is_refused_and_the_remedy_lists_valid_ones(tmp_path: Path) -> None:
    model = load_base_model(tiny_model(tmp_path / "tiny"), torch.float32)
    assert len(select_layers(model, ["q_proj", "mlp.down_proj"], "here")) == 4
    assert "lm_head" not in select_layers(model, ["all-linear"], "here")
    with pytest.raises(UserError) as caught:
        select_layers(model, ["q_proj", "query"], "method.lora.targetModules")
    failure = caught.value.failure
    assert failure.reason == "UnknownTargetModule"
    assert failure.message.startswith("method.lora.targetModules names query,")
    assert "down_proj" in (failure.remedy or "")


@pytest.mark.parametrize(
    ("make", "outputs", "inputs"),
    [
        (tiny_model, {"k_proj", "v_proj"}, {"down_proj"}),
        (families.tiny_qwen, {"k_proj", "v_proj"}, {"down_proj"}),
        (families.tiny_neox, {"query_key_value"}, {"dense_4h_to_h"}),
        (families.tiny_gpt2, {"c_attn"}, {"c_proj"}),
        (families.tiny_mixtral, {"k_proj", "v_proj"}, set()),
    ],
)
def test_ia3_scales_keys_values_and_the_feed_forward_output(
    tmp_path: Path, make: Callable[[Path], Path], outputs: set[str], inputs: set[str]
) -> None:
    model = load_base_model(make(tmp_path / "model"), torch.float32)
    layers, scaled_inputs = select_ia3_layers(model, [], [])
    assert {name.rsplit(".", 1)[-1] for name in scaled_inputs} == inputs
    found = {name.rsplit(".", 1)[-1] for name in set(layers) - set(scaled_inputs)}
    assert found == outputs
    assert not any("attn.c_proj" in name for name in layers)
