"""Model files that are not those of the model: refused before training, never made up for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.trainer.prepare_world import World, use_model
from tests.trainer.servers import Hub
from tests.trainer.tiny import change_weights, set_config, tiny_model

WEIGHTS = "model.safetensors"
NORM = "model.norm.weight"
Tensors = dict[str, np.ndarray]


def offer(hub: Hub, folder: Path, change: Callable[[Tensors], Any]) -> None:
    """The tiny model with other weights, in `folder`, at the hub."""
    use_model(hub, change_weights(tiny_model(folder), change))


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
            "hold model.layers.0.self_attn.q_proj.bias, which LlamaForCausalLM does not have",
        ),
        (
            lambda t: t.update({"model.layers.2.input_layernorm.weight": np.ones(64, np.float32)}),
            "hold model.layers.2.input_layernorm.weight",
        ),
        (
            lambda t: t.update({NORM: np.ones(32, np.float32)}),
            "model.norm.weight has the shape [32], and [64] by config.json",
        ),
        (
            lambda t: t.update({"model.embed_tokens.weight": np.ones((2000, 64), np.float32)}),
            "model.embed_tokens.weight has the shape [2000, 64], and [2048, 64] by config.json",
        ),
        (
            lambda t: t.update({f"base_model.{name}": t.pop(name) for name in list(t)}),
            "the weight files lack",
        ),
    ],
)
def test_weights_that_are_not_those_of_the_config_are_refused(
    world: World, hub: Hub, tmp_path: Path, change: Callable[[Tensors], Any], words: str
) -> None:
    offer(hub, tmp_path / "model", change)
    failure = world.fails_again()
    assert failure.reason == "ModelIncomplete"
    assert words in failure.message
    assert "config.json belongs to these weights" in failure.remedy
    assert not list(world.root.glob("cache/*")), "a model that was refused leaves nothing behind"


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}),
        lambda t: t.update(
            {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
        ),
    ],
)
def test_a_tied_head_and_old_tables_are_no_other_weights(
    world: World, hub: Hub, tmp_path: Path, change: Callable[[Tensors], Any]
) -> None:
    offer(hub, tmp_path / "model", change)
    assert world.prepare().outcome == "Succeeded"


def test_a_head_that_is_tied_and_another_is_refused(world: World, hub: Hub, tmp_path: Path) -> None:
    name = "model.embed_tokens.weight"
    offer(hub, tmp_path / "model", lambda t: t.update({"lm_head.weight": t[name] * 2}))
    failure = world.fails_again()
    assert failure.reason == "UnsupportedModel"
    assert "config.json ties lm_head.weight to model.embed_tokens.weight" in failure.message
    assert "tie_word_embeddings to false" in failure.remedy
    set_config(tmp_path / "model", tie_word_embeddings=False)
    use_model(hub, tmp_path / "model")
    assert world.prepare().outcome == "Succeeded"


def test_an_untied_model_needs_its_head(world: World, hub: Hub, tmp_path: Path) -> None:
    use_model(hub, set_config(tiny_model(tmp_path / "model"), tie_word_embeddings=False))
    assert "lack lm_head.weight" in world.fails_again().message


def test_a_reward_model_gets_a_new_head_for_that_of_the_language_model(
    world: World, hub: Hub, tmp_path: Path
) -> None:
    folder = set_config(tiny_model(tmp_path / "model"), tie_word_embeddings=False)
    tensors = load_file(folder / WEIGHTS)
    save_file(
        {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] * 2}, folder / WEIGHTS
    )
    use_model(hub, folder)
    pairs = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(9)]
    world.rows("rows.jsonl", pairs)
    assert world.prepare(objective="Reward").outcome == "Succeeded"
    tensors.pop(NORM)
    save_file(tensors, folder / WEIGHTS)
    shutil.rmtree(world.root / "cache")
    assert "lack model.norm.weight" in world.fails_again(objective="Reward").message


def cut(content: bytes) -> bytes:
    return content[:-10]


def garble(content: bytes) -> bytes:
    return content[:8] + b"#" + content[9:]


def lengthen_header(content: bytes) -> bytes:
    return (1 << 40).to_bytes(8, "little") + content[8:]


def swap_shape(content: bytes) -> bytes:
    return content.replace(b'"shape":[64,172]', b'"shape":[64,173]', 1)


@pytest.mark.parametrize("damage", [cut, garble, lengthen_header, swap_shape, lambda _: b""])
def test_a_damaged_weight_file_is_refused(
    world: World, hub: Hub, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = tiny_model(tmp_path / "model") / WEIGHTS
    content = path.read_bytes()
    assert damage(content) != content
    path.write_bytes(damage(content))
    use_model(hub, path.parent)
    failure = world.fails_again()
    assert failure.reason == "ModelIncomplete"
    assert failure.file == WEIGHTS
    assert not list(world.root.glob("cache/*"))


@pytest.mark.parametrize(
    "shard", ["../other/model.safetensors", "/etc/passwd", "sub/a.safetensors"]
)
def test_an_index_names_only_files_beside_it(
    world: World, hub: Hub, tmp_path: Path, shard: str
) -> None:
    folder = tiny_model(tmp_path / "model")
    index = {"weight_map": {NORM: shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    use_model(hub, folder)
    failure = world.fails()
    assert failure.reason == "ModelIncomplete"
    assert f"names {shard}, which is no file beside it" in failure.message


ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "acme/base", "r": 8}


@pytest.mark.parametrize("source", ["hub", "claim", "archive"])
def test_an_adapter_is_no_model(world: World, hub: Hub, tmp_path: Path, source: str) -> None:
    folder = tiny_model(tmp_path / "model")
    (folder / "config.json").unlink()
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    failure = world.fails(model={"uri": offer_by(source, world, hub, folder)})
    assert failure.reason == "UnsupportedModel"
    assert "adapter_config.json says that it holds an adapter alone" in failure.message
    assert "merge_and_unload" in failure.remedy


def test_an_adapter_beside_a_model_is_not_left_out(world: World, hub: Hub, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    (folder / "adapter_model.safetensors").write_bytes((folder / WEIGHTS).read_bytes())
    use_model(hub, folder)
    failure = world.fails()
    assert "a model and an adapter, which would be left out" in failure.message
    assert "remove the files of the adapter" in failure.remedy


def offer_by(source: str, world: World, hub: Hub, folder: Path) -> str:
    """The address of the model in `folder` from a kind of source."""
    if source == "hub":
        use_model(hub, folder)
        return "hf://acme/tiny"
    target = world.root / "pvc" / "models"
    if source == "claim":
        shutil.copytree(folder, target / "tiny")
        return "pvc://models/tiny"
    shutil.make_archive(str(target / "tiny"), "zip", folder)
    return "pvc://models/tiny.zip"


def test_a_tensor_that_two_files_hold_is_refused(world: World, hub: Hub, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    tensors = load_file(folder / WEIGHTS)
    save_file({NORM: tensors[NORM] * 2}, folder / "extra.safetensors")
    shards = dict.fromkeys(tensors, WEIGHTS) | {NORM: "extra.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    use_model(hub, folder)
    assert "model.norm.weight is in" in world.fails_again().message


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
        ({"model_type": "own", "auto_map": {"AutoModel": "m.M"}}, "code of its own"),
        ({"model_type": 7}, "has no model_type"),
        ({"architectures": ["LlamaForQuestionAnswering"]}, "is not a causal language model"),
    ],
)
def test_a_config_that_makes_no_model_is_refused_before_the_weights_are_fetched(
    world: World, hub: Hub, tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    use_model(hub, set_config(tiny_model(tmp_path / "model"), **config))
    failure = world.fails()
    assert failure.reason == "UnsupportedModel"
    assert words in failure.message
    assert WEIGHTS not in hub.fetched


@pytest.mark.parametrize(
    ("kind", "architecture", "words"),
    [
        ("roberta", "RobertaForCausalLM", "its positions begin after the id of the padding token"),
        ("deepseek_v32", "DeepseekV32ForCausalLM", "from the padding of a batch"),
    ],
)
def test_an_architecture_that_training_would_get_wrong_is_refused(
    world: World, hub: Hub, tmp_path: Path, kind: str, architecture: str, words: str
) -> None:
    folder = tiny_model(tmp_path / "model")
    use_model(hub, set_config(folder, model_type=kind, architectures=[architecture]))
    failure = world.fails()
    assert failure.reason == "UnsupportedModel"
    assert f"{kind} cannot be trained: " in failure.message
    assert words in failure.message


def test_an_architecture_without_gradient_checkpointing_is_refused_with_the_remedy(
    world: World, hub: Hub, tmp_path: Path
) -> None:
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, "dtype": "float32"}
    folder = tiny_model(tmp_path / "model")
    architecture = ["OpenAIGPTLMHeadModel"]
    set_config(folder, model_type="openai-gpt", architectures=architecture, **sizes)
    use_model(hub, folder)
    failure = world.fails()
    assert "OpenAIGPTLMHeadModel has no gradient checkpointing" in failure.message
    assert "training.gradientCheckpointing to false" in failure.remedy


def test_a_config_with_nan_is_refused(world: World, hub: Hub, tmp_path: Path) -> None:
    use_model(hub, set_config(tiny_model(tmp_path / "model"), rms_norm_eps=float("nan")))
    failure = world.fails()
    assert failure.reason == "ModelIncomplete"
    assert "config.json is not JSON: it has the value NaN" in failure.message


def test_weights_that_are_quantised_without_a_word_in_the_config_are_refused(
    world: World, hub: Hub, tmp_path: Path
) -> None:
    def quantise(tensors: Tensors) -> None:
        name = "model.layers.0.mlp.up_proj.weight"
        tensors[name] = tensors[name].astype(np.int8)

    offer(hub, tmp_path / "model", quantise)
    failure = world.fails_again()
    assert failure.reason == "UnsupportedModel"
    assert "has the type I8" in failure.message
