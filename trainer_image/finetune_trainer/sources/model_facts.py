"""Facts about a model for the planner, read from config.json and the safetensors headers.

No weights are loaded and no torch is imported: a header has a few kilobytes, and it describes what
is stored, while a config says only what was intended. Names in configs differ between families; the
first one of each list that a config has counts.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from finetune_api.facts import ModelFacts
from finetune_api.finetunejob import RopeScaling
from safetensors import SafetensorError, safe_open

from finetune_trainer.runtime.errors import UserError
from finetune_trainer.sources.model_files import (
    CONFIG,
    DTYPES,
    IMAGE_MODELS,
    first_architecture,
    summarize_error,
    unsupported_model,
)

NESTED = ("text_config", "language_config", "llm_config")
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
HIDDEN = ("hidden_size", "n_embd", "d_model")
INTERMEDIATE = (
    "intermediate_size",
    "ffn_hidden_size",
    "n_inner",
    "ffn_dim",
    "moe_intermediate_size",
)
HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
MULTI_QUERY = ("falcon", "RefinedWeb", "RefinedWebModel", "gpt_bigcode")
CONTEXT = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "seq_length",
    "max_seq_len",
    "n_ctx",
)
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
DEFAULT_CONTEXT = 2048
_HEADER_LIMIT = 100_000_000

Header = dict[str, dict[str, Any]]


def model_facts(
    folder: Path, config: dict[str, Any], weights: Sequence[str], revision: str
) -> ModelFacts:
    """The facts of the snapshot in `folder`, whose weights are the files `weights`.

    Raises UserError UnsupportedModel where the config lacks a size or transformers cannot read it,
    and ModelIncomplete where a weight file is cut off.
    """
    sizes = model_sizes(config, folder.name)
    headers = [read_header(folder / name) for name in weights]
    # Many configs leave the key out, and the defaults of the architectures differ.
    text = _read_text_config(folder, folder.name)
    is_tied = bool(getattr(text, "tie_word_embeddings", False))
    parameters = count_parameters(headers, has_tied_weights=is_tied)
    # Results are saved in the config's dtype (methods.saved_dtype), which the files may not have.
    dtype = getattr(text, "dtype", None)
    saved = parameters * dtype.itemsize if dtype else 0
    return ModelFacts(
        **sizes,
        architecture=first_architecture(config) or config["model_type"],
        context_length=context_length(config),
        parameters=parameters,
        has_tied_embeddings=is_tied,
        weight_bytes=max(sum((folder / name).stat().st_size for name in weights), saved),
        revision=revision,
        folder=folder.name,
    )


def model_sizes(config: dict[str, Any], uri: str) -> dict[str, int]:
    """Layers, widths, heads and vocabulary as ModelFacts names them."""
    text = _text_config(config)
    hidden = _first(text, HIDDEN)
    sizes = {
        "layers": _first(text, LAYERS),
        "hidden_size": hidden,
        "attention_heads": _first(text, HEADS),
        "vocabulary": _first(text, ("vocab_size",)),
    }
    if missing := [name for name, value in sizes.items() if not value]:
        raise unsupported_model(
            uri, f"config.json does not give its {missing[0].replace('_', ' ')}"
        )
    known = {name: int(value) for name, value in sizes.items() if value}
    return {
        **known,
        # GPT-2 and Falcon leave out the usual factor of four.
        "intermediate_size": _first(text, INTERMEDIATE) or 4 * known["hidden_size"],
        "key_value_heads": _key_value_heads(text, known["attention_heads"]),
    }


def vocabulary_size(config: dict[str, Any]) -> int | None:
    """Rows of the embedding; None where config.json does not give them."""
    return _first(_text_config(config), ("vocab_size",))


def complete_text_config(folder: Path, config: dict[str, Any], uri: str) -> dict[str, Any]:
    """`config`, of a model that takes images with the defaults of its language model filled in.

    Releases such as Gemma 3 leave out values that are the default of the architecture. Raises
    UserError UnsupportedModel where transformers cannot read the config, whatever the model.
    """
    defaults = _read_text_config(folder, uri)
    name = next((name for name in NESTED if isinstance(config.get(name), dict)), None)
    if name is None or config["model_type"] not in IMAGE_MODELS:
        return config
    return {**config, name: {**defaults.to_dict(), **config[name]}}


def _read_text_config(folder: Path, uri: str) -> Any:
    """The language model's config as transformers reads it."""
    try:
        return local_config(folder).get_text_config()
    except Exception as error:
        raise unsupported_model(
            uri,
            f"transformers cannot read {CONFIG}: {summarize_error(error)}",
            f"Correct {CONFIG}, which may belong to another model or another version.",
        ) from None


def local_config(folder: Path) -> Any:
    """The snapshot's config as transformers reads it; code in the snapshot is never run.

    What a call of the library returns is no property of the model, so these switches have the
    values that training needs: sdpa, for example, has no attentions to return. A negative padding
    token, as of the first Llama, is none.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    for part in (config, config.get_text_config()):
        part.output_attentions = part.output_hidden_states = False
        part.return_dict = True
        if (getattr(part, "pad_token_id", None) or 0) < 0:
            part.pad_token_id = None
    return config


def context_length(config: dict[str, Any]) -> int:
    """Longest sequence of the pre-training; 2048 where the config does not give it (Falcon)."""
    return _first(_text_config(config), CONTEXT) or DEFAULT_CONTEXT


def scaled_context_length(folder: Path, config: dict[str, Any], rope: RopeScaling | None) -> int:
    """The context length with the job's RoPE scaling.

    Raises UserError RopeUnsupported where the architecture has no rotary positions, or several
    kinds of them, or where they are scaled already.
    """
    context = context_length(config)
    if rope is None:
        return context
    positions = getattr(local_config(folder).get_text_config(), "rope_parameters", None)
    kind = _text_config(config).get("model_type") or config["model_type"]
    if not positions:
        raise _rope_unsupported(f"the architecture {kind} has no rotary positions")
    if "rope_theta" not in positions:
        raise _rope_unsupported(f"the layers of {kind} have several kinds of rotary positions")
    if (how := positions.get("rope_type", "default")) != "default":
        raise _rope_unsupported(f"the model's positions are scaled already ({how})")
    return int(context * rope.factor)


def check_experts(config: dict[str, Any], uri: str) -> None:
    """Raise UserError where a job has settings for experts and the model has no experts."""
    if (_first(_text_config(config), EXPERTS) or 0) < 2:
        raise UserError(
            "NotMixtureOfExperts",
            f"method.moe is given, and {uri} has no experts.",
            "Leave method.moe out.",
        )


def check_can_be_reward_model(config: dict[str, Any], uri: str) -> None:
    """Raise UserError where a model cannot become a reward model."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as SCORABLE,
    )

    if config["model_type"] not in SCORABLE or config["model_type"] in IMAGE_MODELS:
        raise UserError(
            "NoRewardHead",
            f"objective Reward cannot train {uri}: transformers has no sequence classifier of "
            f"the architecture {config['model_type']}.",
            "Use another model, such as a Llama, Qwen, Mistral or Gemma.",
        )
    names = config.get("architectures") or ()
    outputs = len(config.get("id2label") or ()) or config.get("num_labels", 2)
    if any("ForSequenceClassification" in name for name in names) and outputs != 1:
        raise UserError(
            "NotARewardModel",
            f"{uri} is a classifier with {outputs} outputs.",
            "Use a language model, or a classifier with one output.",
        )


def _rope_unsupported(why: str) -> UserError:
    return UserError(
        "RopeUnsupported",
        f"model.rope cannot be used: {why}.",
        "Leave model.rope out, and keep training.maxSequenceLength within the model's context.",
    )


def count_parameters(headers: Iterable[Header], has_tied_weights: bool) -> int:
    """Parameters in all files; a tied output layer that is stored too is not counted twice."""
    shapes = {name: entry["shape"] for header in headers for name, entry in header.items()}
    if has_tied_weights and any(
        name.endswith(("embed_tokens.weight", "wte.weight")) for name in shapes
    ):
        shapes = {name: shape for name, shape in shapes.items() if not is_output_layer(name)}
    return sum(math.prod(shape) for shape in shapes.values())


def read_header(path: Path) -> Header:
    """Names, types and shapes of a safetensors file.

    Raises UserError ModelIncomplete where the file is not as long as its header says.

    Format: 8 bytes length N, little endian; N bytes JSON; then the data
    (https://huggingface.co/docs/safetensors).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
            raise _broken(path, "its header is cut off")
        try:
            header = json.loads(file.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            raise _broken(path, "its header is not valid") from None
    if not tensors or size != 8 + length + end:
        raise _broken(path, f"it has {size} bytes instead of {8 + length + end}")
    try:
        # Opening it checks that shapes and offsets agree; no data is read.
        with safe_open(path, "np"):
            return tensors
    except SafetensorError as error:
        raise _broken(path, str(error).rstrip(".")) from None


def read_headers(folder: Path, weights: Iterable[str]) -> dict[str, Header]:
    """The headers of the weight files by their names; raises as `read_header`."""
    return {name: read_header(folder / name) for name in weights}


def stored_dtype(headers: Iterable[Header]) -> str | None:
    """torch's name of the dtype of most weights; None where no weight can be trained."""
    counts: Counter[str] = Counter()
    for entry in itertools.chain.from_iterable(header.values() for header in headers):
        if name := DTYPES.get(entry["dtype"]):
            counts[name] += math.prod(entry["shape"])
    return max(counts, key=lambda name: counts[name], default=None)


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the language model inside a multimodal one."""
    nested = next((config[name] for name in NESTED if isinstance(config.get(name), dict)), None)
    return {**config, **nested} if nested else config


def _first(config: dict[str, Any], names: Sequence[str]) -> int | None:
    for name in names:
        value = config.get(name)
        # Gemma 3n gives one width per layer: the widest decides the memory.
        value = max(value, default=None) if isinstance(value, list) else value
        if isinstance(value, int | float) and value > 0:
            return int(value)
    return None


def _key_value_heads(text: dict[str, Any], heads: int) -> int:
    # Falcon: num_kv_heads counts only in the new architecture; multi_query alone means one.
    if text.get("model_type") in MULTI_QUERY and not text.get("new_decoder_architecture"):
        return 1 if text.get("multi_query", True) else heads
    return _first(text, KEY_VALUE_HEADS) or heads


def is_output_layer(name: str) -> bool:
    return name in ("lm_head.weight", "output.weight", "embed_out.weight") or name.endswith(
        ".lm_head.weight"
    )


def _broken(path: Path, why: str) -> UserError:
    return UserError(
        "ModelIncomplete",
        f"{path.name} is not a complete safetensors file: {why}.",
        "Upload the file again.",
        file=path.name,
    )
