"""The files of a model that are needed, and the errors where one is missing.

Weights must be safetensors: a pickle runs code when it is opened. The model's own code is never run
either, so an architecture that transformers does not support is refused here, before the weights
are fetched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from finetune_trainer.runtime.errors import UserError

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
SMALL_FILES = (
    CONFIG,
    INDEX,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "tekken.json",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "LICENSE*",
    "NOTICE*",
    *TOKENIZER_FILES,
)


def is_small_file(path: str) -> bool:
    """Whether this is a configuration, tokenizer, template or licence file."""
    same_depth = [pattern for pattern in SMALL_FILES if pattern.count("/") == path.count("/")]
    return any(fnmatchcase(path, pattern) for pattern in same_depth)


def tokenizer_digest(folder: Path) -> str:
    """`sha256:` and a digest over names and content of the small files, without config.json."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and is_small_file(path.name) and path.name != CONFIG:
            total.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"sha256:{total.hexdigest()}"


def is_needed(path: str) -> bool:
    """Whether a file may be needed, judged by its name alone."""
    return is_small_file(path) or ("/" not in path and path.endswith(".safetensors"))


def check_listing(paths: Iterable[str], uri: str) -> None:
    """Raise UserError ModelIncomplete where config, tokenizer or weights are missing altogether."""
    names = set(paths)
    if CONFIG not in names:
        raise _incomplete(uri, f"{CONFIG} is missing", "It must be in the top folder.")
    tokenizers = {*TOKENIZER_FILES, "tekken.json", "sentencepiece.bpe.model"}
    if not names & tokenizers:
        raise _incomplete(uri, "tokenizer.json is missing", "Add the model's tokenizer.")
    if not any(is_needed(name) and name.endswith(".safetensors") for name in names):
        remedy = "Save the model with save_pretrained(..., safe_serialization=True)."
        detail = f"{SINGLE} is missing"
        if pickles := [name for name in sorted(names) if name.endswith((".bin", ".pth", ".pt"))]:
            detail += f"; {pickles[0]} is a pickle, which can run code and is not read"
        raise _incomplete(uri, detail, remedy)


def weight_files(paths: Iterable[str], folder: Path, uri: str) -> list[str]:
    """The weight files that the index in `folder` lists, if there is an index.

    Repositories may hold the same weights twice (consolidated.safetensors next to the shards), so
    without an index only `model.safetensors` counts, or else the only safetensors file.
    """
    names = {name for name in paths if "/" not in name and name.endswith(".safetensors")}
    if INDEX in set(paths):
        shards = _shards(folder / INDEX, uri)
        if missing := sorted(shards - names):
            raise _incomplete(
                uri, f"{missing[0]} is missing, but {INDEX} names it", "Upload every shard."
            )
        return sorted(shards)
    if SINGLE in names:
        return [SINGLE]
    if len(names) == 1:
        return sorted(names)
    raise _incomplete(
        uri, f"{INDEX} is missing, but there are {len(names)} weight files", "Upload the index."
    )


def check_config(folder: Path, uri: str) -> dict[str, Any]:
    """Read config.json; raises UserError UnsupportedModel where the model cannot be trained."""
    config = read_json(folder / CONFIG, uri)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise unsupported_model(uri, f"{CONFIG} has no model_type")
    if quantised := config.get("quantization_config"):
        how = quantised.get("quant_method", "some method")
        raise unsupported_model(
            uri,
            f"its weights are quantised ({how})",
            "Use the model's release in bf16 or fp32.",
        )
    known = _known_causal_models()
    if kind not in known:
        code = " and has code of its own, which is never run" if "auto_map" in config else ""
        raise unsupported_model(
            uri, f"{kind} is not a causal language model that transformers supports{code}"
        )
    architecture = (config.get("architectures") or [None])[0]
    if architecture and architecture.lower() not in known[kind]:
        raise unsupported_model(uri, f"{architecture} is not a causal language model")
    return config


def check_reward_config(folder: Path, uri: str) -> dict[str, Any]:
    """Read config.json of grpo.rewardModel; raises UserError where it does not give one score."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    )

    config, model = read_json(folder / CONFIG, uri), f"grpo.rewardModel {uri}"
    architecture = (config.get("architectures") or [None])[0]
    known = _names(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
    if str(architecture).lower() not in known.get(str(config.get("model_type")), set()):
        raise not_a_reward_model(
            model, f"{architecture} is not a sequence classifier that transformers supports"
        )
    # Two labels are the default, which config.json leaves out.
    outputs = len(config.get("id2label") or "") or config.get("num_labels") or 2
    if outputs != 1:
        raise not_a_reward_model(model, f"it has {outputs} outputs")
    return config


def not_a_reward_model(model: str, why: str, file: str | None = None) -> UserError:
    """The error for a grpo.rewardModel that does not give one score."""
    return UserError(
        "NotARewardModel",
        f"{model} gives no reward: {why}.",
        "Use the artifact of a Reward job, or another model for sequence classification with "
        "num_labels 1.",
        file=file,
    )


def unsupported_model(uri: str, why: str, remedy: str | None = None) -> UserError:
    """The error for a model that this version cannot train."""
    return UserError(
        "UnsupportedModel",
        f"{uri} is not supported: {why}.",
        remedy or "Use a causal language model that Transformers supports without remote code.",
    )


def read_json(path: Path, uri: str) -> dict[str, Any]:
    """A JSON object of the model; raises UserError where the file holds something else."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise _incomplete(uri, f"{path.name} is not JSON: {error}", "Upload it again.") from None
    if not isinstance(value, dict):
        raise _incomplete(uri, f"{path.name} is not a JSON object", "Upload it again.")
    return value


def _known_causal_models() -> dict[str, set[str]]:
    """Lower-case class names by model_type."""
    # Imported late: it costs a second, and a missing model should be reported at once.
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return _names(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _names(mapping: Mapping[str, str | tuple[str, ...]]) -> dict[str, set[str]]:
    return {
        kind: {name.lower() for name in ((names,) if isinstance(names, str) else names)}
        for kind, names in mapping.items()
    }


def _shards(index: Path, uri: str) -> set[str]:
    weights = read_json(index, uri).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise _incomplete(uri, f"{INDEX} has no weight_map", "Upload it again.")
    return {str(name) for name in weights.values()}


def _incomplete(uri: str, what: str, remedy: str) -> UserError:
    return UserError("ModelIncomplete", f"{uri} is not a complete model: {what}.", remedy)
