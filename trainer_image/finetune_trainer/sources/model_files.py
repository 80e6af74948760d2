"""Which files of a model are needed, and what is wrong where one is missing.

Only safetensors weights are taken: pickles run code when they are opened. Code of the model
itself is never run either, so an architecture that the library does not know is refused here,
before the weights are fetched.
"""

from __future__ import annotations

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
    """Whether this is configuration, tokenizer, template or licence."""
    same_depth = [pattern for pattern in SMALL_FILES if pattern.count("/") == path.count("/")]
    return any(fnmatchcase(path, pattern) for pattern in same_depth)


def is_needed(path: str) -> bool:
    """Whether a file may be needed, judged by its name alone."""
    return is_small_file(path) or ("/" not in path and path.endswith(".safetensors"))


def check_listing(paths: Iterable[str], shown: str) -> None:
    """UserError where config, tokenizer or weights are missing altogether."""
    names = set(paths)
    if CONFIG not in names:
        raise _incomplete(shown, f"{CONFIG} is missing", "It must lie in the top folder.")
    tokenizers = {*TOKENIZER_FILES, "tekken.json", "sentencepiece.bpe.model"}
    if not names & tokenizers:
        raise _incomplete(shown, "tokenizer.json is missing", "Add the model's tokenizer.")
    if not any(is_needed(name) and name.endswith(".safetensors") for name in names):
        remedy = "Save the model with save_pretrained(..., safe_serialization=True)."
        detail = f"{SINGLE} is missing"
        if pickles := [name for name in sorted(names) if name.endswith((".bin", ".pth", ".pt"))]:
            detail += f"; {pickles[0]} is a pickle, which can run code and is not read"
        raise _incomplete(shown, detail, remedy)


def weight_files(paths: Iterable[str], folder: Path, shown: str) -> list[str]:
    """The weight files, by the index in `folder` where there is one.

    Repositories may hold the same weights twice (consolidated.safetensors beside the shards), so
    without an index only `model.safetensors` counts, or else the only safetensors file there is.
    """
    names = {name for name in paths if "/" not in name and name.endswith(".safetensors")}
    if INDEX in set(paths):
        shards = _shards(folder / INDEX, shown)
        if missing := sorted(shards - names):
            raise _incomplete(
                shown, f"{missing[0]} is missing, but {INDEX} names it", "Upload every shard."
            )
        return sorted(shards)
    if SINGLE in names:
        return [SINGLE]
    if len(names) == 1:
        return sorted(names)
    raise _incomplete(
        shown, f"{INDEX} is missing, but there are {len(names)} weight files", "Upload the index."
    )


def check_config(folder: Path, shown: str) -> dict[str, Any]:
    """Read config.json; UserError where no model here can be trained from it."""
    config = read_json(folder / CONFIG, shown)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise unsupported(shown, f"{CONFIG} has no model_type")
    if quantised := config.get("quantization_config"):
        how = quantised.get("quant_method", "some method")
        raise unsupported(
            shown,
            f"its weights are quantised ({how})",
            "Use the model's release in bf16 or fp32.",
        )
    known = _known_causal_models()
    if kind not in known:
        code = " and brings code of its own, which is never run" if "auto_map" in config else ""
        raise unsupported(shown, f"{kind} is not a causal language model known here{code}")
    architecture = (config.get("architectures") or [None])[0]
    if architecture and architecture.lower() not in known[kind]:
        raise unsupported(shown, f"{architecture} is not a causal language model")
    return config


def check_reward_config(folder: Path, shown: str) -> dict[str, Any]:
    """Read config.json of grpo.rewardModel; UserError where it does not give one number."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    )

    config, model = read_json(folder / CONFIG, shown), f"grpo.rewardModel {shown}"
    architecture = (config.get("architectures") or [None])[0]
    known = _names(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
    if str(architecture).lower() not in known.get(str(config.get("model_type")), set()):
        raise no_reward(model, f"{architecture} is not a sequence classifier known here")
    # Two labels are the default and are not written down.
    outputs = len(config.get("id2label") or "") or config.get("num_labels") or 2
    if outputs != 1:
        raise no_reward(model, f"it has {outputs} outputs")
    return config


def no_reward(model: str, why: str, file: str | None = None) -> UserError:
    """The error for a grpo.rewardModel that does not give one number."""
    return UserError(
        "NotARewardModel",
        f"{model} gives no reward: {why}.",
        "Use the artifact of a Reward job, or another model for sequence classification with "
        "num_labels 1.",
        file=file,
    )


def unsupported(shown: str, why: str, remedy: str | None = None) -> UserError:
    """This model cannot be trained by this version."""
    return UserError(
        "UnsupportedModel",
        f"{shown} is not supported: {why}.",
        remedy or "Use a causal language model that Transformers supports without remote code.",
    )


def read_json(path: Path, shown: str) -> dict[str, Any]:
    """A JSON object of the model; UserError where it is none."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise _incomplete(shown, f"{path.name} is not JSON: {error}", "Upload it again.") from None
    if not isinstance(value, dict):
        raise _incomplete(shown, f"{path.name} is not a JSON object", "Upload it again.")
    return value


def _known_causal_models() -> dict[str, set[str]]:
    """Lower-case class names by model_type."""
    # Imported late: this costs a second, and a missing model should be told at once.
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return _names(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _names(mapping: Mapping[str, str | tuple[str, ...]]) -> dict[str, set[str]]:
    return {
        kind: {name.lower() for name in ((names,) if isinstance(names, str) else names)}
        for kind, names in mapping.items()
    }


def _shards(index: Path, shown: str) -> set[str]:
    weights = read_json(index, shown).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise _incomplete(shown, f"{INDEX} has no weight_map", "Upload it again.")
    return {str(name) for name in weights.values()}


def _incomplete(shown: str, what: str, remedy: str) -> UserError:
    return UserError("ModelIncomplete", f"{shown} is not a whole model: {what}.", remedy)
