"""A model and a data set so small that every test can have its own.

The model is a random two-layer Llama of 0.2 M parameters with a byte-level BPE tokenizer of 2,048
tokens and a ChatML template. It is written file by file with numpy, so making one needs no torch
and takes less than a second, and the same arguments always give the same bytes. The rows have a
regular pattern (the answer repeats the question's term), so that a few steps of training show.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 2048
CONTEXT = 512
HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS = 64, 172, 2, 4, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' "
    "+ message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The usual template, without generation marks."""

CHATML_GENERATION = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The same text, with the assistant's part between generation marks."""

_SYLLABLES = [
    "ba",
    "con",
    "der",
    "fi",
    "gra",
    "ho",
    "in",
    "ka",
    "lo",
    "mem",
    "no",
    "per",
    "ra",
    "ti",
]
_KINDS = ["protocol", "language", "machine", "network", "file", "program", "editor", "compiler"]
_QUALITIES = ["small", "fast", "portable", "old", "typed", "shared", "secure", "parallel"]
_ACTIONS = ["stores", "sends", "checks", "translates", "counts", "copies", "draws", "sorts"]


def tiny_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """`count` different rows of a made-up glossary: prompt and completion."""
    names = ["".join(parts) for parts in itertools.product(_SYLLABLES, repeat=3)]
    generator = random.Random(seed)
    generator.shuffle(names)
    if count > len(names):
        raise ValueError(f"there are only {len(names)} terms")
    return [_row(name, generator) for name in names[:count]]


def _row(name: str, generator: random.Random) -> dict[str, str]:
    kind, quality, action = (generator.choice(words) for words in (_KINDS, _QUALITIES, _ACTIONS))
    what = f"{quality} {kind} that {action} {generator.choice(_KINDS)}s"
    return {
        "prompt": f"What does the term {name} mean?",
        "completion": f"{name.capitalize()} is a {what}.",
    }


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write `rows` as JSON lines and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tiny_model(
    folder: Path,
    template: str | None = CHATML,
    seed: int = 0,
    context: int = CONTEXT,
    pad_token: str = "<|endoftext|>",
) -> Path:
    """Write a complete model in the Hugging Face layout into `folder` and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(_tokenizer_json())
    write_json(folder / "tokenizer_config.json", _tokenizer_config(template, context, pad_token))
    write_json(folder / "config.json", _config(context))
    write_json(folder / "generation_config.json", {"eos_token_id": 2, "pad_token_id": 0})
    save_file(_weights(seed), str(folder / "model.safetensors"), metadata={"format": "pt"})
    # safetensors writes mode 0600, which a reader with another uid cannot open.
    (folder / "model.safetensors").chmod(0o644)
    return folder


def change_weights(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> Path:
    """Write the weights of a tiny model again, after `change` has changed them by their names."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)
    return folder


def set_config(folder: Path, **changes: Any) -> Path:
    """Change fields of config.json; None removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    write_json(path, {name: value for name, value in config.items() if value is not None})
    return folder


@cache
def _tokenizer_json() -> str:
    """The tokenizer, trained once in a process."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = (part for row in tiny_rows(2000) for part in row.values())
    tokenizer.train_from_iterator(text, trainer)
    return str(tokenizer.to_str(pretty=True))


def _tokenizer_config(template: str | None, context: int, pad_token: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": pad_token,
        "unk_token": "<|endoftext|>",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    return config if template is None else {**config, "chat_template": template}


def _config(context: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HIDDEN // HEADS,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "vocab_size": VOCABULARY,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _weights(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    kv = HIDDEN // HEADS * KV_HEADS
    block = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (kv, HIDDEN),
        "self_attn.v_proj": (kv, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
    }
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (VOCABULARY, HIDDEN), "norm": (HIDDEN,)}
    for layer, (name, shape) in itertools.product(range(LAYERS), block.items()):
        shapes[f"layers.{layer}.{name}"] = shape
    return {f"model.{name}.weight": _tensor(shape, generator) for name, shape in shapes.items()}


def _tensor(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    if len(shape) == 1:
        return np.ones(shape, dtype=np.float32)
    return generator.normal(0.0, 0.02, shape).astype(np.float32)


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")
