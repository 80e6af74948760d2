"""Facts of a model from its config and its safetensors headers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.model_facts import (
    context_length,
    count_parameters,
    model_facts,
    model_sizes,
    read_header,
)
from safetensors.numpy import load_file, save_file

from tests.trainer import families
from tests.trainer.tiny import tiny_model

CASES: dict[str, tuple[dict[str, Any], tuple[int, ...], int]] = {
    "Llama": (
        {
            "num_hidden_layers": 32,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
        },
        (32, 4096, 14336, 32, 8, 128256),
        131072,
    ),
    "Llama without key_value_heads": (
        {
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "vocab_size": 100,
            "max_position_embeddings": 2048,
        },
        (2, 64, 128, 4, 4, 100),
        2048,
    ),
    "Phi-3": (
        {
            "num_hidden_layers": 32,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32064,
            "max_position_embeddings": 4096,
            "sliding_window": 2047,
        },
        (32, 3072, 8192, 32, 32, 32064),
        4096,
    ),
    "Falcon 7B": (
        {
            "model_type": "falcon",
            "num_hidden_layers": 32,
            "hidden_size": 4544,
            "num_attention_heads": 71,
            "num_kv_heads": 71,
            "multi_query": True,
            "new_decoder_architecture": False,
            "vocab_size": 65024,
        },
        (32, 4544, 18176, 71, 1, 65024),
        2048,
    ),
    "Falcon 40B": (
        {
            "model_type": "falcon",
            "num_hidden_layers": 60,
            "hidden_size": 8192,
            "num_attention_heads": 128,
            "num_kv_heads": 8,
            "new_decoder_architecture": True,
            "vocab_size": 65024,
        },
        (60, 8192, 32768, 128, 8, 65024),
        2048,
    ),
    "GPT-2": (
        {
            "model_type": "gpt2",
            "n_layer": 12,
            "n_embd": 768,
            "n_inner": None,
            "n_head": 12,
            "n_positions": 1024,
            "vocab_size": 50257,
        },
        (12, 768, 3072, 12, 12, 50257),
        1024,
    ),
    "Gemma 3, nested": (
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "text_config": {
                "num_hidden_layers": 34,
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "vocab_size": 262208,
                "max_position_embeddings": 131072,
            },
            "vision_config": {"hidden_size": 1152},
        },
        (34, 2560, 10240, 8, 4, 262208),
        131072,
    ),
    "Qwen3 MoE": (
        {
            "num_hidden_layers": 48,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_experts": 128,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "vocab_size": 151936,
            "max_position_embeddings": 40960,
        },
        (48, 2048, 6144, 32, 4, 151936),
        40960,
    ),
    "one width per layer": (
        {
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "intermediate_size": [128, 256],
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 100,
            "max_position_embeddings": 512,
        },
        (2, 64, 256, 4, 2, 100),
        512,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_sizes_are_read_under_the_names_of_every_family(name: str) -> None:
    config, expected, context = CASES[name]
    sizes = model_sizes(config, "model")
    names = ("layers", "hidden_size", "intermediate_size", "attention_heads")
    assert tuple(sizes[n] for n in (*names, "key_value_heads", "vocabulary")) == expected
    assert context_length(config) == context


@pytest.mark.parametrize("missing", ["num_hidden_layers", "vocab_size"])
def test_config_without_a_size_is_refused(missing: str) -> None:
    config = {key: value for key, value in CASES["Llama"][0].items() if key != missing}
    with pytest.raises(UserError) as caught:
        model_sizes(config, "hf://acme/tiny")
    assert caught.value.failure.reason == "UnsupportedModel"


def test_facts_of_the_tiny_model_agree_with_its_weights(tiny_model_folder: Path) -> None:
    config = json.loads((tiny_model_folder / "config.json").read_text())
    facts = model_facts(tiny_model_folder, config, ["model.safetensors"], "main")
    block = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 172 + 2 * 64
    assert facts.parameters == 2048 * 64 + 64 + 2 * block
    assert facts.architecture == "LlamaForCausalLM"
    assert facts.weight_bytes == (tiny_model_folder / "model.safetensors").stat().st_size
    assert facts.folder == tiny_model_folder.name


def test_weights_are_as_large_as_results_in_the_dtype_of_the_config(tmp_path: Path) -> None:
    """Export loads and writes them in that dtype."""
    file = tiny_model(tmp_path) / "model.safetensors"
    save_file({name: value.astype(np.float16) for name, value in load_file(file).items()}, file)
    config = json.loads((tmp_path / "config.json").read_text())
    facts = model_facts(tmp_path, config, [file.name], "main")
    assert config["dtype"] == "float32"
    assert facts.weight_bytes == 4 * facts.parameters


@pytest.mark.parametrize(
    ("make", "key", "is_tied"),
    [
        (tiny_model, True, True),
        (families.tiny_gpt2, None, True),
        (families.tiny_qwen, None, False),
        (families.tiny_gpt2, False, False),
    ],
)
def test_a_config_without_the_key_has_the_ties_of_its_architecture(
    tmp_path: Path, make: Callable[[Path], Path], key: bool | None, is_tied: bool
) -> None:
    folder = make(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    if key is not None:
        config["tie_word_embeddings"] = key
    (folder / "config.json").write_text(json.dumps(config))
    facts = model_facts(folder, config, ["model.safetensors"], "main")
    assert facts.has_tied_embeddings == is_tied


def test_facts_of_a_config_that_transformers_cannot_read_are_refused(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "unheard-of"}))
    with pytest.raises(UserError) as caught:
        model_facts(folder, config, ["model.safetensors"], "main")
    assert caught.value.failure.reason == "UnsupportedModel"


def entry(*shape: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 4]}


def test_tied_output_layer_is_counted_once_and_an_untied_one_is_counted() -> None:
    shards = [
        {"model.embed_tokens.weight": entry(100, 8)},
        {"lm_head.weight": entry(100, 8), "model.norm.weight": entry(8)},
    ]
    assert count_parameters(shards, has_tied_weights=True) == 808
    assert count_parameters(shards, has_tied_weights=False) == 1608
    assert count_parameters(shards[1:], has_tied_weights=True) == 808


def test_fused_experts_are_counted() -> None:
    assert (
        count_parameters([{"experts.gate_up_proj": entry(8, 16, 32)}], has_tied_weights=False)
        == 4096
    )


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_weight_file_is_reported(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros((16, 16), dtype=np.float32)}, str(path))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError) as caught:
        read_header(path)
    assert caught.value.failure.reason == "ModelIncomplete"
    assert caught.value.failure.file == "model.safetensors"


def test_text_file_named_safetensors_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError):
        read_header(path)


def test_a_header_that_is_nested_too_deeply_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = b'{"a": ' + b"[" * 2000 + b"]" * 2000 + b"}"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="its header is not valid"):
        read_header(path)


def test_tiny_model_is_the_same_every_time(tmp_path: Path, tiny_model_folder: Path) -> None:
    again = tiny_model(tmp_path / "again")
    for path in tiny_model_folder.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()
