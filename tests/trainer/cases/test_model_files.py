"""Files that do not fit the model: refused before training, and never replaced by guesses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_api.failure import Failure
from finetune_trainer.methods.weight_check import build_empty_model, check_weights
from finetune_trainer.prepare import build_job_model
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.model_facts import model_sizes, read_header, read_headers
from finetune_trainer.sources.model_files import check_config, check_listing, weight_files
from safetensors.numpy import load_file, save_file

from tests.trainer.architectures import SPEC
from tests.trainer.families import tiny_mixtral
from tests.trainer.prepare_world import World, use_model
from tests.trainer.servers import Hub
from tests.trainer.tiny import change_weights, set_config

WEIGHTS = "model.safetensors"
NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"
Tensors = dict[str, np.ndarray]


@pytest.fixture
def folder(tmp_path: Path, tiny_model_folder: Path) -> Path:
    """A copy of the tiny model."""
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


def check(folder: Path, is_reward_model: bool = False) -> None:
    """The check of the weights, as prepare does it."""
    files = weight_files([path.name for path in folder.iterdir()], folder, "model")
    empty_model = build_empty_model(folder, "model", is_reward_model)
    check_weights(
        folder, read_headers(folder, files), "model", empty_model, needs_head=not is_reward_model
    )


def failure_of(work: Callable[..., Any], *arguments: Any) -> Failure:
    with pytest.raises(UserError) as caught:
        work(*arguments)
    assert caught.value.failure.remedy
    return caught.value.failure


def quantise(tensors: Tensors) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].astype(np.int8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(NORM), "the weight files lack model.norm.weight, which would be random"),
        (
            lambda t: [t.pop(name) for name in list(t) if "layers.1" in name],
            "and 6 more weights, which would be random",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.ones(64, np.float32)}),
            "have model.layers.0.self_attn.q_proj.bias, which LlamaForCausalLM does not have",
        ),
        (
            lambda t: t.update({"model.layers.2.input_layernorm.weight": np.ones(64, np.float32)}),
            "have model.layers.2.input_layernorm.weight",
        ),
        (
            lambda t: t.update({NORM: np.ones(32, np.float32)}),
            "model.norm.weight has the shape [32], and [64] by config.json",
        ),
        (
            lambda t: t.update({EMBEDDING: np.ones((2000, 64), np.float32)}),
            "model.embed_tokens.weight has the shape [2000, 64], and [2048, 64] by config.json",
        ),
        (
            lambda t: t.update({f"base_model.{name}": t.pop(name) for name in list(t)}),
            "the weight files lack",
        ),
    ],
)
def test_weights_that_do_not_fit_the_config_are_refused(
    folder: Path, change: Callable[[Tensors], Any], words: str
) -> None:
    failure = failure_of(check, change_weights(folder, change))
    assert failure.reason == "ModelIncomplete"
    assert words in failure.message
    assert "config.json belongs to these weights" in failure.remedy


EXPERT = "model.layers.0.block_sparse_moe.experts.1.w1.weight"


@pytest.mark.parametrize(
    "change",
    [lambda t: t.pop(EXPERT), lambda t: t.update({EXPERT: np.ones((65, 64), np.float32)})],
)
def test_experts_that_cannot_be_fused_are_refused(
    tmp_path: Path, change: Callable[[Tensors], Any]
) -> None:
    folder = tiny_mixtral(tmp_path)
    check(folder)
    failure = failure_of(check, change_weights(folder, change))
    assert failure.reason == "ModelIncomplete"
    assert "experts of a layer differ in number or shape" in failure.message


def test_weights_that_are_quantised_without_a_setting_in_the_config_are_refused(
    folder: Path,
) -> None:
    failure = failure_of(check, change_weights(folder, quantise))
    assert failure.reason == "UnsupportedModel"
    assert "has the type I8" in failure.message


def test_a_model_that_is_refused_leaves_nothing_in_the_cache(
    world: World, hub: Hub, folder: Path
) -> None:
    use_model(hub, change_weights(folder, lambda tensors: tensors.pop(NORM)))
    failure = world.fails_again()
    assert "lack model.norm.weight, which would be random" in failure.message
    assert not list(world.root.glob("cache/*"))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update({"lm_head.weight": t[EMBEDDING].copy()}),
        lambda t: t.update(
            {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
        ),
    ],
)
def test_a_tied_head_and_old_tables_are_accepted(
    folder: Path, change: Callable[[Tensors], Any]
) -> None:
    check(change_weights(folder, change))


def test_a_tied_head_with_other_values_is_refused(folder: Path) -> None:
    change_weights(folder, lambda t: t.update({"lm_head.weight": t[EMBEDDING] * 2}))
    failure = failure_of(check, folder)
    assert failure.reason == "UnsupportedModel"
    assert "config.json ties lm_head.weight to model.embed_tokens.weight" in failure.message
    assert "tie_word_embeddings to false" in failure.remedy
    check(set_config(folder, tie_word_embeddings=False))


def test_an_untied_model_needs_its_head(folder: Path) -> None:
    set_config(folder, tie_word_embeddings=False)
    assert "lack lm_head.weight" in failure_of(check, folder).message


def test_a_reward_model_gets_a_new_head_instead_of_that_of_the_language_model(
    folder: Path,
) -> None:
    set_config(folder, tie_word_embeddings=False)
    change_weights(folder, lambda t: t.update({"lm_head.weight": t[EMBEDDING] * 2}))
    check(folder, is_reward_model=True)
    change_weights(folder, lambda t: t.pop(NORM))
    assert "lack model.norm.weight" in failure_of(check, folder, True).message


def cut(content: bytes) -> bytes:
    return content[:-10]


def garble(content: bytes) -> bytes:
    return content[:8] + b"#" + content[9:]


def lengthen_header(content: bytes) -> bytes:
    return (1 << 40).to_bytes(8, "little") + content[8:]


def swap_shape(content: bytes) -> bytes:
    return content.replace(b'"shape":[64,172]', b'"shape":[64,173]', 1)


@pytest.mark.parametrize("damage", [cut, garble, lengthen_header, swap_shape, lambda _: b""])
def test_a_damaged_weight_file_is_refused(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    path = folder / WEIGHTS
    content = path.read_bytes()
    assert damage(content) != content
    path.write_bytes(damage(content))
    failure = failure_of(read_header, path)
    assert failure.reason == "ModelIncomplete"
    assert failure.file == WEIGHTS


@pytest.mark.parametrize(
    "shard", ["../other/model.safetensors", "/etc/passwd", "sub/a.safetensors"]
)
def test_an_index_lists_only_files_in_the_same_folder(tmp_path: Path, shard: str) -> None:
    index = "model.safetensors.index.json"
    (tmp_path / index).write_text(json.dumps({"weight_map": {NORM: shard}}))
    failure = failure_of(weight_files, [index, WEIGHTS], tmp_path, "model")
    assert failure.reason == "ModelIncomplete"
    assert f"lists {shard}, which is not in the same folder" in failure.message


ADAPTER = ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"]


def test_an_adapter_is_refused_instead_of_a_model() -> None:
    failure = failure_of(check_listing, ADAPTER, "model")
    assert failure.reason == "UnsupportedModel"
    assert "has adapter_config.json, so it contains only an adapter" in failure.message
    assert "merge_and_unload" in failure.remedy


def test_an_adapter_in_the_folder_of_a_model_is_refused() -> None:
    failure = failure_of(check_listing, [*ADAPTER, "config.json", WEIGHTS], "model")
    assert "a model and an adapter, which would not be used" in failure.message
    assert "remove the files of the adapter" in failure.remedy


@pytest.mark.parametrize(
    ("has_model", "words"), [(False, "only an adapter"), (True, "a model and an adapter")]
)
def test_an_archive_with_an_adapter_is_refused(
    world: World, folder: Path, has_model: bool, words: str
) -> None:
    if not has_model:
        (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    shutil.make_archive(str(world.root / "pvc" / "models" / "tiny"), "zip", folder)
    failure = world.fails(model={"uri": "pvc://models/tiny.zip"})
    assert failure.reason == "UnsupportedModel"
    assert words in failure.message


def test_a_tensor_that_two_files_have_is_refused(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({NORM: tensors[NORM] * 2}, folder / "extra.safetensors")
    shards = dict.fromkeys(tensors, WEIGHTS) | {NORM: "extra.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert "model.norm.weight is in" in failure_of(check, folder).message


def build(folder: Path) -> None:
    """The checks of config.json, as prepare does them."""
    model_sizes(check_config(folder, "model"), "model")
    build_empty_model(folder, "model")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"hidden_size": "64"}, "hidden size"),
        ({"rms_norm_eps": "1e-5"}, "expected float, got str"),
        ({"num_attention_heads": 7}, "not a multiple of the number of attention heads"),
        ({"hidden_act": "none of them"}, "none of them"),
        ({"pad_token_id": 5000}, "Padding_idx must be within num_embeddings"),
        ({"dtype": "auto"}, "has dtype 'auto'"),
        ({"torch_dtype": "int8"}, "has torch_dtype 'int8'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised (gptq)"),
        ({"quantization_config": "fp8"}, "quantised (some method)"),
        ({"quantization_config": {}}, "quantised (some method)"),
        ({"model_type": "own", "auto_map": {"AutoModel": "m.M"}}, "code of its own"),
        ({"model_type": 7}, "has no model_type"),
        ({"architectures": ["LlamaForQuestionAnswering"]}, "is not a causal language model"),
        ({"is_encoder_decoder": True}, "has no encoder"),
    ],
)
def test_a_config_of_no_valid_model_is_refused(
    folder: Path, config: dict[str, Any], words: str
) -> None:
    failure = failure_of(build, set_config(folder, **config))
    assert failure.reason == "UnsupportedModel"
    assert words in failure.message


def test_prepare_refuses_a_config_before_the_weights_are_fetched(
    world: World, hub: Hub, folder: Path
) -> None:
    use_model(hub, set_config(folder, hidden_act="none of them"))
    assert world.fails().reason == "UnsupportedModel"
    assert WEIGHTS not in hub.fetched


@pytest.mark.parametrize(
    ("kind", "architecture", "words"),
    [
        ("roberta", "RobertaForCausalLM", "its positions start after the id of the padding token"),
        ("deepseek_v32", "DeepseekV32ForCausalLM", "select padding tokens of a batch"),
    ],
)
def test_an_architecture_that_training_computes_wrongly_is_refused(
    folder: Path, kind: str, architecture: str, words: str
) -> None:
    set_config(folder, model_type=kind, architectures=[architecture])
    failure = failure_of(check_config, folder, "model")
    assert failure.reason == "UnsupportedModel"
    assert f"{kind} cannot be trained: " in failure.message
    assert words in failure.message


def test_an_architecture_without_gradient_checkpointing_is_refused_with_the_remedy(
    folder: Path,
) -> None:
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, "dtype": "float32"}
    architecture = ["OpenAIGPTLMHeadModel"]
    set_config(folder, model_type="openai-gpt", architectures=architecture, **sizes)
    failure = failure_of(build_job_model, SPEC, folder, "model")
    assert "OpenAIGPTLMHeadModel has no gradient checkpointing" in failure.message
    assert "training.gradientCheckpointing to false" in failure.remedy


def test_a_config_with_nan_is_refused(folder: Path) -> None:
    failure = failure_of(build, set_config(folder, rms_norm_eps=float("nan")))
    assert failure.reason == "ModelIncomplete"
    assert "config.json is not JSON: it contains NaN" in failure.message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"rms_norm_eps": "1e-5"}, "expected float, got str"),
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"max_position_embeddings": 512.5}, "max_position_embeddings"),
    ],
)
def test_a_config_that_transformers_cannot_read_is_not_called_a_tokenizer(
    world: World, hub: Hub, folder: Path, config: dict[str, Any], words: str
) -> None:
    use_model(hub, set_config(folder, **config))
    failure = world.fails()
    assert failure.reason == "UnsupportedModel"
    assert "config.json" in failure.message
    assert "okenizer" not in failure.message
    assert words in failure.message


@pytest.mark.parametrize("content", ["{", "[]", b"\xe9"])
@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
)
def test_a_broken_file_of_the_tokenizer_is_named(
    folder: Path, name: str, content: str | bytes
) -> None:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    failure = failure_of(check_config, folder, "model")
    assert (failure.reason, name in failure.message) == ("ModelIncomplete", True)
