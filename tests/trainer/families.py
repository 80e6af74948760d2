"""Tiny random models of other architectures than Llama, with the tokenizer of the tiny Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.trainer.tiny import (
    CONTEXT,
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    KV_HEADS,
    LAYERS,
    VOCABULARY,
    tiny_model,
)

EXPERTS = 4
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SPARSE: dict[str, Any] = {**SHAPE, "intermediate_size": 64, "num_experts_per_tok": 2}


def tiny_mixtral(folder: Path) -> Path:
    """Two layers with four experts each, two of them for a token; tied embeddings."""
    from transformers import MixtralConfig

    return write_family(folder, MixtralConfig(**SPARSE, num_local_experts=EXPERTS))


def tiny_qwen_moe(folder: Path) -> Path:
    """Two layers with four experts each and normalised keys."""
    from transformers import Qwen3MoeConfig

    sizes = {"moe_intermediate_size": 64, "head_dim": 16, "num_experts": EXPERTS}
    return write_family(folder, Qwen3MoeConfig(**SPARSE, **sizes))


def tiny_deepseek(folder: Path) -> Path:
    """DeepSeek V3: low-rank keys and values; its router's bias stays in fp32."""
    from transformers import DeepseekV3Config

    experts = {"n_routed_experts": EXPERTS, "moe_intermediate_size": 32, "first_k_dense_replace": 1}
    groups = {"n_group": 1, "topk_group": 1, "num_key_value_heads": HEADS}
    ranks = {"kv_lora_rank": 16, "q_lora_rank": 16}
    widths = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    shape = {**SPARSE, **experts, **groups, **ranks, **widths}
    return write_family(folder, DeepseekV3Config(**shape))


def tiny_qwen(folder: Path) -> Path:
    """Qwen 2: biases on queries, keys and values; a head of its own."""
    from transformers import Qwen2Config

    return write_family(folder, Qwen2Config(**SHAPE, tie_word_embeddings=False))


def tiny_neox(folder: Path) -> Path:
    """GPT-NeoX: one layer for queries, keys and values; a head of its own; biases."""
    from transformers import GPTNeoXConfig

    shape = _shape_without("num_key_value_heads")
    return write_family(folder, GPTNeoXConfig(**shape, tie_word_embeddings=False))


def tiny_falcon(folder: Path) -> Path:
    """Falcon: samples of a packed sequence would attend to each other, and some rates of dropout
    are read from the config in every forward pass."""
    from transformers import FalconConfig

    shape = _shape_without("intermediate_size", "num_key_value_heads")
    return write_family(folder, FalconConfig(**shape, attention_dropout=0.1, hidden_dropout=0.1))


def tiny_gpt2(folder: Path) -> Path:
    """GPT-2: weights are stored [in, out]; no rotary positions; tied embeddings."""
    from transformers import GPT2Config

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=CONTEXT,
        bos_token_id=1,
        eos_token_id=2,
    )
    return write_family(folder, config)


def tiny_opt(folder: Path) -> Path:
    """OPT: dropout by attributes of its blocks; learned positions; no gated layer."""
    from transformers import OPTConfig

    sizes = {"hidden_size": HIDDEN, "ffn_dim": INTERMEDIATE, "num_hidden_layers": LAYERS}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = OPTConfig(
        vocab_size=VOCABULARY,
        word_embed_proj_dim=HIDDEN,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
        dropout=0.1,
        attention_dropout=0.1,
        layerdrop=0.1,
        **sizes,
        **tokens,
    )
    return write_family(folder, config)


def write_family(folder: Path, config: Any, auto_class: str = "AutoModelForCausalLM") -> Path:
    """A random model of this config, with the other files of the tiny Llama."""
    import torch
    import transformers

    tiny_model(folder)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    config.dtype = torch.float32
    model = getattr(transformers, auto_class).from_config(config)
    tokens = model.generation_config
    tokens.bos_token_id, tokens.eos_token_id, tokens.pad_token_id = 1, 2, 0
    model.save_pretrained(folder)
    return folder


def _shape_without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in SHAPE.items() if name not in names}
